//! `idiolect history`: the replies that new ones are compared with, as text, and how many of them are kept.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use idiolect_miner::config::{Config, SharedHistory};
use idiolect_miner::{app, cli};
use idiolect_uniqueness::{HistoryStore, JsonlError, Retention, check_jsonl, export_jsonl, import_jsonl};
use serde_json::json;

use super::{Usage, json_arg};
use crate::{output, replies};

const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn command() -> Command {
    let keys = |command| cli::key_args(command, |key| ["data_dir", "uniqueness.shared_history"].contains(&key));
    let file = |help: &'static str| {
        Arg::new("file").value_name("FILE|-").required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("history")
        .about("Export, import or shorten the history of replies that new ones are compared with")
        .after_help(
            "The history is what --history names, an SQLite file or postgres://USER@HOST/DATABASE; else that of the configuration \
             (uniqueness.shared_history); else the one in the data directory.\n\
             Examples: idiolect history export replies.jsonl; \
             idiolect history import --history postgres://miner@db.example/idiolect replies.jsonl; idiolect history prune --keep 15500",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            keys(Command::new("export"))
                .about("Write all replies with their embeddings, one JSON object a line, oldest first")
                .arg(file("A file that is not there yet; - is standard output")),
            keys(Command::new("import"))
                .about("Add the replies of an export; those that are there already are replaced")
                .after_help(
                    "Of a file with a bad line nothing is imported. Standard input, and what else can be read only once, is imported \
                     as it comes in, some hundred at a time; where it turns bad, it is said how many replies were imported.",
                )
                .arg(file("An export; - is standard input"))
                .arg(json_arg()),
            keys(Command::new("prune"))
                .about("Erase old replies from the history")
                .after_help(
                    "Records of how replies came to be stay; idiolect erase erases those, too. A miner does this by itself, by \
                     pipeline.retention.",
                )
                .arg(
                    Arg::new("keep")
                        .long("keep")
                        .value_name("N")
                        .allow_negative_numbers(true)
                        .value_parser(value_parser!(u64))
                        .help("Keep the last N replies, of all encoders together"),
                )
                .arg(
                    Arg::new("days")
                        .long("days")
                        .value_name("D")
                        .allow_negative_numbers(true)
                        .value_parser(value_parser!(u32).range(0..=100_000))
                        .help("Keep what is not older than so many days"),
                )
                .group(ArgGroup::new("what").args(["keep", "days"]).required(true).multiple(true))
                .arg(json_arg()),
        ])
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("export", matches)) => export(matches).await,
        Some(("import", matches)) => import(matches).await,
        Some(("prune", matches)) => prune(matches).await,
        _ => Ok(()),
    }
}

async fn export(matches: &ArgMatches) -> anyhow::Result<()> {
    let place = place(matches)?;
    let file = file(matches)?;
    // A history that is not there is named before a file is made.
    let store = existing(&place).await?;
    if replies::is_standard_input(file) {
        return lines(&*store, io::stdout()).await.map(drop);
    }
    let written = tokio::select! {
        written = whole_file(&*store, file) => written,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    let n = written.with_context(|| format!("cannot export to {}", file.display()))?;
    Ok(output::say(format!("exported {n} replies to {}", file.display()))?)
}

/// Writes an export beside its place and moves it there at last: half of one must not be taken for a whole one. Only its
/// owner can read it: replies are in it.
async fn whole_file(store: &dyn HistoryStore, path: &Path) -> anyhow::Result<u64> {
    if path.symlink_metadata().is_ok() {
        bail!("it is there already; remove it, or name another file");
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().context("it names no file")?.to_string_lossy();
    let out = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(folder)?;
    let n = lines(store, &out).await?;
    out.as_file().sync_all()?;
    out.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(n)
}

async fn lines(store: &dyn HistoryStore, out: impl Write + Send) -> anyhow::Result<u64> {
    match export_jsonl(store, &mut BufWriter::new(out)).await {
        Ok(n) => Ok(n),
        Err(JsonlError::Io(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

async fn import(matches: &ArgMatches) -> anyhow::Result<()> {
    let place = place(matches)?;
    let file = file(matches)?;
    let imported = import_from(file, &place).await;
    let (n, n_kept) = imported.with_context(|| format!("cannot import {}", replies::name(file)))?;
    if matches.get_flag("json") {
        return output::json(&json!({ "imported": n, "replies": n_kept }));
    }
    Ok(output::say(format!("imported {n} replies into {place}, which has {n_kept} now"))?)
}

/// Imports a file's replies, all or none of them where it can be read twice, and returns how many, and how many there are
/// then.
async fn import_from(path: &Path, place: &SharedHistory) -> anyhow::Result<(u64, u64)> {
    let input: Box<dyn Read + Send> = if replies::is_standard_input(path) {
        Box::new(io::stdin())
    } else {
        let mut file = File::open(path)?;
        let kind = file.metadata()?.file_type();
        // What else there is can be read only once; a folder not even that, which the check says.
        if kind.is_file() || kind.is_dir() {
            check_jsonl(&mut BufReader::new(&file)).context("nothing was imported")?;
            file.rewind()?;
        }
        Box::new(file)
    };
    // Not before: a file that is refused makes no store.
    let store = idiolect_miner::history::open(place).await?;
    let n = import_jsonl(&*store, &mut BufReader::new(input)).await?;
    Ok((n, store.count().await?))
}

async fn prune(matches: &ArgMatches) -> anyhow::Result<()> {
    let retention = Retention {
        max_replies: matches.get_one::<u64>("keep").copied(),
        max_age: matches.get_one::<u32>("days").map(|&days| DAY * days),
    };
    let place = place(matches)?;
    let store = existing(&place).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let now_ms = i64::try_from(now.as_millis()).context("the clock is far in the future")?;
    let n = store.prune(&retention, now_ms).await?;
    let n_kept = store.count().await?;
    if matches.get_flag("json") {
        return output::json(&json!({ "erased": n, "replies": n_kept }));
    }
    Ok(output::say(format!("erased {n} replies of {place}, which has {n_kept} now"))?)
}

fn file(matches: &ArgMatches) -> anyhow::Result<&PathBuf> {
    matches.get_one::<PathBuf>("file").ok_or_else(|| Usage("name a file".to_owned()).into())
}

fn place(matches: &ArgMatches) -> anyhow::Result<SharedHistory> {
    Ok(of(&super::load(matches)?.config))
}

/// Returns where a miner of this configuration keeps the replies that it compares new ones with.
pub(crate) fn of(config: &Config) -> SharedHistory {
    let own = || SharedHistory::Sqlite(app::store_path(&config.data_dir));
    config.uniqueness.shared_history.clone().unwrap_or_else(own)
}

/// Opens a history that is there.
pub(crate) async fn existing(place: &SharedHistory) -> anyhow::Result<Arc<dyn HistoryStore>> {
    if let SharedHistory::Sqlite(path) = place
        && !path.exists()
    {
        bail!(
            "there is no history at {place}; a miner makes it when it starts, and --history or --data-dir names its place"
        );
    }
    idiolect_miner::history::open(place).await
}
