//! Reports of the arena as HTML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, value_parser};
use idiolect_arena::replay::{Moment, RunReport};
use idiolect_arena::statistics::Interval;
use idiolect_arena::whatif::Effort;
use idiolect_arena::{Standing, StepRecord};

use super::field::Field;
use super::run::Report;
use crate::html::{Bar, Bars, Histogram, Line, Lines, Page, Pair, Reliability, Row};

type OfEffort = fn(&Effort) -> Option<f64>;
type OfMoment = fn(&Moment) -> Interval;

/// Models of the population that are shown beside the contestants.
const MOST_SHOWN: usize = 20;
/// Steps that a place over time is the mean of.
const WINDOW: usize = 30;

pub(in crate::commands) fn arg() -> Arg {
    Arg::new("html")
        .long("html")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Write a report with pictures, too: one file that opens without a network")
}

/// What pictures need of the steps.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Places and distances of each contestant, step by step.
    of: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    /// Masked and all, by contestant and prompt.
    masked: BTreeMap<(String, String), (f64, f64)>,
}

impl Seen {
    pub(super) fn take(&mut self, step: &StepRecord) {
        let Some(name) = &step.contestant else { return };
        let Some(own) = step.members.iter().find(|member| member.name == *name) else { return };
        let (places, distances) = self.of.entry(name.clone()).or_default();
        places.push(own.place);
        if !own.failed {
            distances.push(f64::from(own.distance));
            let (masked, all) = self.masked.entry((name.clone(), step.prompt.clone())).or_default();
            *masked += f64::from(u8::from(own.masked));
            *all += 1.0;
        }
    }
}

fn with(Interval { value, low, high }: Interval) -> String {
    format!("{value:.3} ({low:.3} to {high:.3})")
}

fn places(Interval { value, low, high }: Interval) -> String {
    format!("{value:.1} ({low:.1} to {high:.1})")
}

/// Writes the report of a tournament.
pub(super) fn save(path: &Path, report: &Report, seen: &Seen, field: &Field) -> anyhow::Result<()> {
    let mut page = Page::new("Tournament");
    page.facts(&[
        ("steps", report.rules.steps.to_string()),
        ("batch", report.rules.batch.to_string()),
        ("models", report.n_models.to_string()),
        ("prompts", report.n_prompts.to_string()),
        ("clones", report.rules.clones.to_string()),
        ("seed", report.rules.seed.to_string()),
        ("profile", report.profile.clone()),
        ("encoder", report.encoder.clone()),
        ("quality", report.quality.clone().unwrap_or_else(|| "1 for all".to_owned())),
    ]);
    page.heading("Standings");
    let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    let row = |standing: &Standing| Row {
        ours: standing.contestant,
        cells: vec![
            standing.name.clone(),
            format!("{:.3}", standing.failed_share),
            with(standing.intervals.masked_share),
            with(standing.intervals.mean_reward),
            places(standing.intervals.place_mean),
            format!("{:.4}", standing.weight_share),
            figure(standing.mean_quality),
            figure(standing.mean_penalties),
            figure(standing.mean_label),
        ],
    };
    let rows: Vec<Row> = report.standings.iter().map(row).collect();
    let head = ["name", "failed", "masked", "reward", "place", "weight", "quality", "penalties", "label"];
    page.table(
        "Contestants first, then the population by weight; intervals are of 95 %, by a bootstrap over prompts.",
        &head,
        &rows,
    );

    page.heading("Places");
    let shown = report.standings.iter().filter(|standing| standing.contestant);
    let shown = shown.chain(report.standings.iter().filter(|standing| !standing.contestant).take(MOST_SHOWN));
    let bar = |standing: &Standing| {
        let Interval { value, low, high } = standing.intervals.place_mean;
        Bar { name: standing.name.clone(), value, interval: Some((low, high)) }
    };
    let bars = Bars {
        title: "Mean place in a batch".to_owned(),
        x: "place, 1 is the best".to_owned(),
        bars: shown.map(bar).collect(),
    };
    page.picture(&bars, "Shorter is better. Contestants, and those of the population that weigh most.")?;
    let lines: Vec<Line> = seen.of.iter().map(|(name, (places, _))| rolling(name, places)).collect();
    if !lines.is_empty() {
        let lines = Lines {
            title: "Place over time".to_owned(),
            x: "step".to_owned(),
            y: "place".to_owned(),
            down: true,
            lines,
        };
        page.picture(&lines, &format!("The mean of {WINDOW} steps."))?;

        page.heading("The gate");
        let gate = &field.profile.gate;
        let bound = f64::from(gate.batch.distance_at(gate.pass_above));
        let margins = |(name, (_, distances)): (&String, &(Vec<f64>, Vec<f64>))| {
            (name.clone(), distances.iter().map(|distance| distance - bound).collect())
        };
        let histogram = Histogram {
            title: "Margin to the gate".to_owned(),
            x: format!("distance to the nearest reply, less the {bound:.4} that it takes"),
            groups: seen.of.iter().map(margins).collect(),
            bins: 40,
            mark: Some((0.0, "masked to the left".to_owned())),
        };
        page.picture(&histogram, "What is to the left of the line was masked.")?;
    }
    let groups: Vec<(String, Vec<Pair>)> = field
        .efforts
        .iter()
        .map(|(name, efforts)| {
            let pair = |(prompt, effort): (&String, &Effort)| {
                let (masked, all) = seen.masked.get(&(name.clone(), prompt.clone()))?;
                Some(Pair { predicted: effort.predicted_masked?, happened: masked / all })
            };
            (name.clone(), efforts.iter().filter_map(pair).collect())
        })
        .filter(|(_, pairs): &(String, Vec<Pair>)| !pairs.is_empty())
        .collect();
    if !groups.is_empty() {
        let score = |(name, pairs): &(String, Vec<Pair>)| {
            format!("{name}: Brier score {:.3} over {} prompts", Reliability::brier(pairs).unwrap_or(0.0), pairs.len())
        };
        let scores: Vec<String> = groups.iter().map(score).collect();
        let caption = format!(
            "What the miner expected when it chose, and what came of it; larger dots are more prompts. {}.",
            scores.join("; ")
        );
        page.picture(&Reliability { title: "Reliability".to_owned(), groups }, &caption)?;
    }
    cost(&mut page, &field.efforts)?;
    page.save(path)
}

/// Adds what replies took.
pub(in crate::commands) fn cost(
    page: &mut Page,
    efforts: &BTreeMap<String, BTreeMap<String, Effort>>,
) -> anyhow::Result<()> {
    let mut has_heading = false;
    let figures: [(&str, &str, OfEffort); 3] = [
        ("Latency", "milliseconds, the mean", |effort| effort.latency_ms),
        ("Tokens", "tokens read and written for a reply, the mean", |effort| effort.tokens),
        ("Cost", "USD for 1,000 replies", |effort| effort.cost_usd.map(|cost| cost * 1000.0)),
    ];
    for (title, x, of) in figures {
        let bar = |(name, efforts): (&String, &BTreeMap<String, Effort>)| {
            let values: Vec<f64> = efforts.values().filter_map(of).collect();
            let value = values.iter().sum::<f64>() / values.len() as f64;
            (!values.is_empty()).then(|| Bar { name: name.clone(), value, interval: None })
        };
        let bars: Vec<Bar> = efforts.iter().filter_map(bar).collect();
        if bars.is_empty() {
            continue;
        }
        if !has_heading {
            page.heading("What replies took");
            has_heading = true;
        }
        page.picture(&Bars { title: title.to_owned(), x: x.to_owned(), bars }, "For each prompt of the record.")?;
    }
    Ok(())
}

fn rolling(name: &str, places: &[f64]) -> Line {
    let mut sum = 0.0;
    let mut points = Vec::new();
    for (nth, place) in places.iter().enumerate() {
        sum += place;
        if nth >= WINDOW {
            sum -= places[nth - WINDOW];
        }
        let n = (nth + 1).min(WINDOW);
        // Fewer say little, unless there are no more.
        if n == WINDOW || (places.len() < WINDOW && nth + 1 == places.len()) {
            points.push(((nth + 1) as f64, sum / n as f64, None));
        }
    }
    Line { name: name.to_owned(), points }
}

/// Writes the report of published runs.
pub(super) fn save_replay(path: &Path, facts: &[(&str, String)], runs: &[(&str, &RunReport)]) -> anyhow::Result<()> {
    let mut page = Page::new("Published runs with one more miner");
    page.facts(facts);
    page.heading("What would have become of it");
    let row = |(name, run): &(&str, &RunReport)| Row {
        ours: true,
        cells: vec![
            (*name).to_owned(),
            run.run.clone(),
            run.steps.to_string(),
            format!("{:.3}", run.failed_share),
            with(run.masked_share),
            with(run.mean_reward),
            format!("{:.3}", run.mean_reward_of_rivals),
            format!("{} of {:.0}", places(run.place_mean), run.mean_rivals + 1.0),
            format!("{} of {}", places(run.final_place), run.n_miners + 1),
            format!("{:.4}", run.weight_share.value),
        ],
    };
    let rows: Vec<Row> = runs.iter().map(row).collect();
    let head = [
        "name",
        "run",
        "steps",
        "failed",
        "masked",
        "reward",
        "rivals' reward",
        "place in a step",
        "place at the end",
        "weight at the end",
    ];
    page.table(
        "Intervals are of 95 %, over draws of what is imputed, over steps, and over which steps the miner is asked in.",
        &head,
        &rows,
    );
    for (name, run) in runs.iter().take(1) {
        let coverage = &run.coverage;
        page.text(&format!("Of {name}'s replies computed: {}.", coverage.computed.join(", ")));
        page.text(&format!("Drawn from what rivals got: {}.", coverage.imputed.join(", ")));
        page.text(&format!("Taken to pass: {}.", coverage.taken_to_pass.join(", ")));
    }
    page.heading("Over time");
    let figures: [(&str, &str, bool, OfMoment); 3] = [
        ("Place over time", "place among all miners", true, |moment| moment.place),
        ("Share of the weights over time", "share", false, |moment| moment.weight_share),
        ("Moving average over time", "reward", false, |moment| moment.average),
    ];
    for (title, y, down, of) in figures {
        let line = |(name, run): &(&str, &RunReport)| Line {
            name: format!("{name}, {}", run.run),
            points: run
                .moments
                .iter()
                .map(|moment| {
                    let Interval { value, low, high } = of(moment);
                    (moment.step as f64, value, Some((low, high)))
                })
                .collect(),
        };
        let lines = runs.iter().map(line).collect();
        let lines = Lines { title: title.to_owned(), x: "step".to_owned(), y: y.to_owned(), down, lines };
        page.picture(&lines, "With intervals of 95 %.")?;
    }
    page.save(path)
}
