//! `idiolect whatif`: two configurations on the same prompts, in the same batches.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::Rules;
use idiolect_arena::statistics::Interval;
use idiolect_arena::whatif::{Comparison, Difference, Side, compare};
use idiolect_miner::progress::Counter;
use serde::Serialize;

use super::arena::field::{self, Field};
use super::arena::page;
use super::{Usage, json_arg};
use crate::html::{Page, Row};
use crate::output;

pub(crate) fn command() -> Command {
    let file = |id: &'static str, help: &'static str| {
        Arg::new(id).value_name(id).required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    let command = Command::new("whatif")
        .about("Compare two configurations on the same prompts, in the same batches: what does the second have over the first?")
        .after_help(
            "Both are asked every prompt of the population, each with its whole pipeline, or are files of ready replies, {\"p\": PROMPT, \"m\": NAME, \"t\": TEXT} a line, with \
             latency_ms, tokens and cost_usd where known. Each step puts first the one, then the other among the same rivals. Figures are means over prompts; intervals are of 95 %, by a \
             bootstrap over prompts. Tokens are those read and generated, whatever was sent; a cost needs prices of the backends (prompt_price, completion_price) or --hour-price.\n\
             Example: idiolect whatif plain.toml full.toml --population arena --steps 300 --encoder mpnet --embeddings kept",
        )
        .arg(file("A", "A configuration (.toml), or ready replies of one miner"))
        .arg(file("B", "Another"))
        .arg(
            Arg::new("hour-price")
                .long("hour-price")
                .value_name("USD")
                .value_parser(price)
                .allow_negative_numbers(true)
                .help("What an hour of the machine costs, which makes one reply at a time"),
        )
        .arg(page::arg())
        .arg(json_arg());
    field::args(command)
}

fn price(text: &str) -> Result<f64, String> {
    let price: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if price.is_finite() && price >= 0.0 {
        Ok(price)
    } else {
        Err(format!("is {text}, expected US dollars, at least 0"))
    }
}

#[derive(Debug, Serialize)]
struct Report {
    rules: Rules,
    profile: String,
    encoder: String,
    quality: Option<String>,
    #[serde(flatten)]
    comparison: Comparison,
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().context("name two configurations");
    let contestants = [path("A")?, path("B")?];
    let mut field = Field::prepare(matches, &contestants).await?;
    let mut names = Vec::new();
    for (path, found) in contestants.iter().zip(&field.names) {
        match &found[..] {
            [name] => names.push(name.clone()),
            several => {
                let problem = format!("{} has {} miners, expected one", path.display(), several.len());
                return Err(Usage(problem).into());
            }
        }
    }
    if let Some(hour) = matches.get_one::<f64>("hour-price") {
        for effort in field.efforts.values_mut().flat_map(BTreeMap::values_mut) {
            let of_machine = effort.latency_ms.map(|ms| hour * ms / 3_600_000.0);
            effort.cost_usd = of_machine.map(|cost| cost + effort.cost_usd.unwrap_or(0.0)).or(effort.cost_usd);
        }
    }
    let tournament = field.tournament()?;
    let (how, mut steps) = (field.how, Vec::new());
    let bar = Counter::new("steps");
    tournament.play(&how, &mut |mut step| {
        bar.at(step.step + 1, how.steps);
        // Of the others nothing is asked.
        step.members.retain(|member| names.contains(&member.name));
        if step.contestant.is_some() {
            steps.push(step);
        }
    })?;
    bar.close();
    let none = BTreeMap::new();
    let efforts = [0, 1].map(|nth: usize| field.efforts.get(&names[nth]).unwrap_or(&none));
    let comparison = compare([&names[0], &names[1]], &steps, efforts, how.seed)?;
    let report = Report {
        rules: how,
        profile: field.profile.name.clone(),
        encoder: field.encoder.clone(),
        quality: field.quality.clone(),
        comparison,
    };
    if let Some(path) = matches.get_one::<PathBuf>("html") {
        save(path, &report, &field)?;
    }
    if matches.get_flag("json") { output::json(&report) } else { print(&report) }
}

/// Returns the rows of the table.
fn rows(comparison: &Comparison) -> Vec<Vec<String>> {
    let figure = |value: f64| if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    let row = |one: &Difference| {
        let Interval { value, low, high } = one.difference;
        vec![
            one.figure.to_owned(),
            figure(one.a),
            figure(one.b),
            format!("{} ({} to {})", figure(value), figure(low), figure(high)),
            one.better.map_or("", |side| if side == Side::A { "A better" } else { "B better" }).to_owned(),
        ]
    };
    comparison.differences.iter().map(row).collect()
}

fn save(path: &std::path::Path, report: &Report, field: &Field) -> anyhow::Result<()> {
    let Report { rules, profile, encoder, quality, comparison } = report;
    let mut page = Page::new("Two configurations");
    page.answer(&comparison.verdict);
    page.facts(&[
        ("A", comparison.a.clone()),
        ("B", comparison.b.clone()),
        ("prompts", comparison.n_prompts.to_string()),
        ("steps", rules.steps.to_string()),
        ("batch", rules.batch.to_string()),
        ("seed", rules.seed.to_string()),
        ("profile", profile.clone()),
        ("encoder", encoder.clone()),
        ("quality", quality.clone().unwrap_or_else(|| "1 for all".to_owned())),
    ]);
    let rows: Vec<Row> = rows(comparison).into_iter().map(|cells| Row { cells, ours: false }).collect();
    page.table("Intervals are of 95 %, by a bootstrap over prompts.", &["", "A", "B", "B less A", "verdict"], &rows);
    page::cost(&mut page, &field.efforts)?;
    page.save(path)
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { rules, profile, encoder, quality, comparison } = report;
    let quality = quality.as_ref().map_or_else(|| "quality 1 for all".to_owned(), |name| format!("quality by {name}"));
    output::say(format!(
        "A is {}, B is {}: {} prompts, {} steps with batches of {}, {profile}, {encoder}, {quality}",
        comparison.a, comparison.b, comparison.n_prompts, rules.steps, rules.batch
    ))?;
    output::columns(&["", "A", "B", "B less A", ""], &rows(comparison))?;
    if let Some([a, b]) = comparison.latency_ms {
        output::say(format!(
            "latency, 50 % and 95 %: A {:.0} and {:.0} ms, B {:.0} and {:.0} ms",
            a[0], a[1], b[0], b[1]
        ))?;
    }
    Ok(output::say(&comparison.verdict)?)
}
