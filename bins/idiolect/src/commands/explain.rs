//! `idiolect explain`: how a reply came to be.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_miner::cli;
use idiolect_pipeline::{CandidateRecord, PipelineError, Provenance, ProvenanceStore};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{existing_store, json_arg};
use crate::output;

pub(crate) fn command() -> Command {
    let command = Command::new("explain")
        .about("Show how a reply came to be: candidates, scores, choice, time, rewards")
        .after_help("Examples: idiolect explain last; idiolect explain 0199; idiolect explain --list 20")
        .arg(
            Arg::new("id")
                .value_name("ID|last")
                .required_unless_present("list")
                .help("A reply's id, the beginning of one, or last"),
        )
        .arg(
            Arg::new("list")
                .long("list")
                .value_name("N")
                .num_args(0..=1)
                .default_missing_value("20")
                .value_parser(value_parser!(u32))
                .conflicts_with("id")
                .help("List the last N replies instead [default: 20]"),
        )
        .arg(
            Arg::new("prompts")
                .long("prompts")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["list", "json"])
                .help("Show the messages that each candidate's model was given, too; JSON has what they are made of"),
        )
        .arg(json_arg());
    cli::key_args(command, |key| key == "data_dir")
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    let pool = existing_store(&loaded.config).await?;
    let store = ProvenanceStore::open(pool.clone()).await?;
    let shown = show(matches, &store).await;
    pool.close().await;
    shown
}

async fn show(matches: &ArgMatches, store: &ProvenanceStore) -> anyhow::Result<()> {
    let as_json = matches.get_flag("json");
    let Some(which) = matches.get_one::<String>("id") else {
        let rows = store.list(matches.get_one::<u32>("list").copied().unwrap_or(20)).await?;
        if as_json {
            return output::json(&rows);
        }
        let rows = rows.into_iter().map(|row| {
            let caller = if row.caller.is_empty() { "ourselves".to_owned() } else { row.caller };
            vec![row.id, when(row.time_ms), row.transport, caller, format!("{:.0} ms", row.total_ms), row.reason]
        });
        return Ok(output::columns(&["id", "when", "over", "asked by", "took", "chosen"], &rows.collect::<Vec<_>>())?);
    };
    let provenance = match store.explain(which).await {
        Err(PipelineError::NotFound(_)) if which == "last" => {
            anyhow::bail!("no reply is on record yet; ask the miner something, as with idiolect probe")
        }
        Err(PipelineError::NotFound(_)) => {
            anyhow::bail!(
                "no reply {which:?} is on record, or several ids begin like this; idiolect explain --list shows the last ones"
            )
        }
        found => found?,
    };
    if as_json {
        return output::json(&provenance);
    }
    output::say(provenance.to_string().trim_end())?;
    if matches.get_flag("prompts") {
        prompts(&provenance)?;
    }
    Ok(())
}

/// Shows what each recipe made of the prompt, once for the candidates that share it.
fn prompts(provenance: &Provenance) -> anyhow::Result<()> {
    let mut shown: Vec<&CandidateRecord> = Vec::new();
    for candidate in &provenance.candidates {
        if shown.iter().any(|other| other.operators == candidate.operators && other.sampling == candidate.sampling) {
            continue;
        }
        shown.push(candidate);
        let Some(messages) = provenance.messages(candidate) else {
            return Ok(output::say("\nthe prompt was not kept: see pipeline.store_prompts")?);
        };
        output::say(format!("\n{} was asked:", candidate.recipe))?;
        if !candidate.sampling.is_empty() {
            output::say(format!("  sampling {}", serde_json::to_string(&candidate.sampling)?))?;
        }
        for message in messages {
            output::say(format!("  {}:", message.role))?;
            for line in message.content.lines() {
                output::say(format!("    | {line}"))?;
            }
        }
    }
    Ok(())
}

fn when(time_ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(time_ms / 1000).ok();
    time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| time_ms.to_string())
}
