//! `idiolect erase`: forgets prompts and replies.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use idiolect_miner::cli;
use idiolect_pipeline::ProvenanceStore;
use idiolect_protocol::Hotkey;
use idiolect_uniqueness::{Erase, HistoryStore as _, SqliteHistory};
use serde_json::json;

use super::{existing_store, json_arg};
use crate::output;

const DAY_MS: i64 = 86_400_000;

pub(crate) fn command() -> Command {
    let command = Command::new("erase")
        .about("Erase prompts and replies from the store, overwriting them on disk")
        .after_help(
            "A miner that runs keeps the embeddings of its last replies in memory until it is restarted; texts it keeps in the store only. \
             A history that miners share (uniqueness.shared_history) is erased alike, whichever of them sent the reply.",
        )
        .arg(Arg::new("id").long("id").value_name("ID").help("One reply"))
        .arg(
            Arg::new("caller")
                .long("caller")
                .value_name("SS58")
                .value_parser(value_parser!(Hotkey))
                .help("Everything that this hotkey asked for"),
        )
        .arg(
            Arg::new("older-than")
                .long("older-than")
                .allow_negative_numbers(true)
                .value_name("DAYS")
                .value_parser(value_parser!(i64).range(0..=100_000))
                .help("Everything older than so many days"),
        )
        .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).help("Everything"))
        .group(ArgGroup::new("what").args(["id", "caller", "older-than", "all"]).required(true))
        .arg(json_arg());
    cli::key_args(command, |key| key == "data_dir" || key == "uniqueness.shared_history")
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    let what = what(matches)?;
    let pool = existing_store(&loaded.config).await?;
    let store = ProvenanceStore::open(pool.clone()).await?;
    let history = SqliteHistory::open(pool.clone()).await?;
    let n_erased = store.erase(&what).await?;
    history.erase(&what).await?;
    pool.close().await;
    if let Some(place) = &loaded.config.uniqueness.shared_history {
        idiolect_miner::history::open(place).await?.erase(&what).await.context("the shared history")?;
    }
    if matches.get_flag("json") {
        return output::json(&json!({ "erased": n_erased }));
    }
    if let (Erase::Id(id), 0) = (&what, n_erased) {
        bail!("no reply {id} is on record; the whole id is needed, as idiolect explain --list shows it");
    }
    Ok(output::say(format!("erased {n_erased} replies"))?)
}

fn what(matches: &ArgMatches) -> anyhow::Result<Erase> {
    if let Some(id) = matches.get_one::<String>("id") {
        return Ok(Erase::Id(id.clone()));
    }
    if let Some(caller) = matches.get_one::<Hotkey>("caller") {
        return Ok(Erase::Caller(caller.to_string()));
    }
    if let Some(days) = matches.get_one::<i64>("older-than") {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let now_ms = i64::try_from(now.as_millis()).context("the clock is far in the future")?;
        return Ok(Erase::Before(now_ms - days * DAY_MS));
    }
    Ok(Erase::All)
}
