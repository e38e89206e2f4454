//! `idiolect arena run`: a tournament against a recorded population.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::statistics::Interval;
use idiolect_arena::{Rules, Standing, StepRecord};
use idiolect_miner::progress::Counter;
use serde::Serialize;

use super::field::{self, Field};
use super::page;
use crate::commands::json_arg;
use crate::output;

pub(super) fn command() -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = Command::new("run")
        .about("Let replies compete with a recorded population: masked share, rewards, places, weights")
        .after_help(
            "A population is a file of replies, {\"p\": PROMPT, \"m\": MODEL, \"t\": TEXT, \"q\": LABEL} a line, or a folder with replies.jsonl or replies.jsonl.zst and, if wanted, \
             prompts.jsonl, {\"id\": PROMPT, \"prompt\": TEXT} a line. A step is a prompt and a batch of replies to it, drawn at random from the population's. A contestant \
             takes the place of the last one drawn; several do not meet each other. Each m of a contestant's file is one, but NAME#1, NAME#2 and so on are its \
             copies for --clones. A configuration's name is its file's; its whole pipeline is asked, with a history of its own, and its copies with other seeds. Its replies are kept with the \
             embeddings until anything of it changes.\n\
             masked: share of the steps that the gate masks, with an interval of 95 % by a bootstrap over prompts. batch reward: of the distance to the nearest other reply. \
             reward: what passes earns its quality, less what the penalties of validators' prompts take (criteria, labels of other tasks, stock openings); quality, with prompts, is the normalised dpo reward by uniqueness.quality_model, and 1 without. \
             failed: share of calls without a reply, which earn nothing. irrelevant: share of replies to validators' prompts that are too far from the base text, with mpnet, which earn nothing. place: in the batch by reward, the mean of those that share it; 5 % and 95 % are quantiles over steps. weight: share of the weights after the last step by the validators' moving \
             average. label: mean of the judge's labels, which count for nothing. The history of earlier replies has no part.\n\
             Example: idiolect arena run --population arena --contestant ours.jsonl --batch 50 --steps 300 --encoder mpnet",
        )
        .arg(path("contestant", "FILE").action(ArgAction::Append).help("Ready replies to the same prompts, or a miner's configuration (.toml), which is asked now; may be given again"))
        .arg(
            Arg::new("verbose")
                .long("verbose")
                .action(ArgAction::SetTrue)
                .requires("json")
                .help("With --json: each batch with everybody in it, too"),
        )
        .arg(page::arg())
        .arg(json_arg());
    field::args(command)
}

/// What came of a tournament.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) rules: Rules,
    pub(super) profile: String,
    pub(super) encoder: String,
    /// The reward model; `None` where everybody's quality is 1.
    pub(super) quality: Option<String>,
    pub(super) n_models: usize,
    pub(super) n_prompts: usize,
    pub(super) n_left_out: usize,
    /// The hashes of configurations that were asked, by name.
    pub(super) configurations: BTreeMap<String, String>,
    pub(super) standings: Vec<Standing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) steps: Option<Vec<StepRecord>>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let contestants: Vec<PathBuf> = matches.get_many::<PathBuf>("contestant").into_iter().flatten().cloned().collect();
    let field = Field::prepare(matches, &contestants).await?;
    let tournament = field.tournament()?;
    let how = field.how;
    let mut steps = matches.get_flag("verbose").then(Vec::new);
    let bar = Counter::new("steps");
    let mut seen = page::Seen::default();
    let standings = tournament.play(&how, &mut |step| {
        bar.at(step.step + 1, how.steps);
        seen.take(&step);
        if let Some(steps) = &mut steps {
            steps.push(step);
        }
    })?;
    bar.close();
    let report = Report {
        rules: how,
        profile: field.profile.name.clone(),
        encoder: field.encoder.clone(),
        quality: field.quality.clone(),
        n_models: tournament.n_models(),
        n_prompts: tournament.n_prompts(),
        n_left_out: tournament.n_left_out(),
        configurations: field.configurations.clone(),
        standings,
        steps,
    };
    if let Some(path) = matches.get_one::<PathBuf>("html") {
        page::save(path, &report, &seen, &field)?;
    }
    if matches.get_flag("json") { output::json(&report) } else { print(&report) }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { rules, profile, encoder, quality, n_models, n_prompts, n_left_out, .. } = report;
    let quality = quality.as_ref().map_or_else(|| "quality 1 for all".to_owned(), |name| format!("quality by {name}"));
    output::say(format!(
        "{} steps with batches of {} from {n_models} models, {n_prompts} prompts, {profile}, {encoder}, {quality}",
        rules.steps, rules.batch
    ))?;
    if *n_left_out > 0 {
        output::say(format!("{n_left_out} prompts left out, which not all contestants answer, or nobody else"))?;
    }
    let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    let with = |Interval { value, low, high }: Interval| format!("{value:.3} ({low:.3} to {high:.3})");
    let row = |standing: &Standing| {
        vec![
            if standing.contestant { format!("> {}", standing.name) } else { format!("  {}", standing.name) },
            standing.steps.to_string(),
            format!("{:.3}", standing.failed_share),
            format!("{:.3}", standing.irrelevant_share),
            with(standing.intervals.masked_share),
            format!("{:.3}", standing.mean_batch_reward),
            with(standing.intervals.mean_reward),
            format!("{:.1}", standing.place_mean),
            format!("{:.1}", standing.place_p05),
            format!("{:.1}", standing.place_p95),
            format!("{:.4}", standing.weight_share),
            figure(standing.mean_quality),
            figure(standing.mean_penalties),
            figure(standing.mean_label),
        ]
    };
    let rows: Vec<Vec<String>> = report.standings.iter().map(row).collect();
    let head = [
        "  name",
        "steps",
        "failed",
        "irrelevant",
        "masked",
        "batch reward",
        "reward",
        "place",
        "5 %",
        "95 %",
        "weight",
        "quality",
        "penalties",
        "label",
    ];
    Ok(output::columns(&head, &rows)?)
}
