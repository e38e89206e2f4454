//! What a live experiment found, as a table.

use idiolect_arena::live::{self, Setup};
use idiolect_arena::statistics::Interval;
use serde::Serialize;

use crate::output;

/// What is reported.
#[derive(Serialize)]
pub(super) struct Found<'a> {
    pub(super) setup: &'a Setup,
    pub(super) reward_model: &'a str,
    pub(super) n_rivals: f64,
    pub(super) missing: Vec<String>,
    #[serde(flatten)]
    pub(super) report: &'a live::Report,
    pub(super) requests: Option<live::Latency>,
}

/// Prints it.
pub(super) fn print(found: &Found<'_>) -> anyhow::Result<()> {
    let with = |interval: Interval| format!("{:.3} ({:.3} to {:.3})", interval.value, interval.low, interval.high);
    let seconds = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{:.1}", ms / 1e3));
    let row = |arm: &live::ArmReport| {
        vec![
            arm.arm.to_owned(),
            with(arm.reward),
            with(arm.criteria),
            format!("{:.3}", arm.keyword),
            format!("{:.3}", arm.content),
            format!("{:.3}", arm.quality),
            format!("{:.2}", arm.logprob),
            format!("{:.3}", arm.irrelevant),
            format!("{:.3}", arm.masked),
            format!("{:.0}", arm.tokens),
            seconds(arm.latency.map(|latency| latency.p50_ms)),
            seconds(arm.latency.map(|latency| latency.p95_ms)),
            arm.latency.map_or_else(String::new, |latency| latency.misses.to_string()),
        ]
    };
    let head = [
        "arm",
        "reward",
        "criteria",
        "keyword",
        "content",
        "quality",
        "log p",
        "irrelevant",
        "masked",
        "tokens",
        "p50 s",
        "p95 s",
        "missed",
    ];
    output::columns(&head, &found.report.arms.iter().map(row).collect::<Vec<_>>())?;
    output::say("")?;
    let row = |comparison: &live::Comparison| {
        vec![
            format!("{} over {}", comparison.arm, comparison.over),
            with(comparison.ratio.reward),
            with(comparison.difference),
            with(comparison.ratio.criteria),
            format!("{:.4}", comparison.p),
        ]
    };
    let rows: Vec<Vec<String>> = found.report.comparisons.iter().map(row).collect();
    output::columns(&["", "reward, ratio", "reward, difference", "criteria, ratio", "p"], &rows)?;
    output::say(format!(
        "\n{} prompts, {:.0} rivals each; {} candidates in {} s; gate and relevance by {}, quality by {}; not computed: {}",
        found.report.n_prompts,
        found.n_rivals,
        found.setup.k,
        found.setup.timeout_s,
        found.setup.encoder,
        found.reward_model,
        found.missing.join(", "),
    ))?;
    if let Some(requests) = &found.requests {
        output::say(format!(
            "{} further requests: half within {:.1} s, 95 % within {:.1} s; {} missed the deadline, {:.2} % (at most {:.2} %, with a confidence of 95 %)",
            requests.n,
            requests.p50_ms / 1e3,
            requests.p95_ms / 1e3,
            requests.misses,
            100.0 * requests.miss_rate,
            100.0 * requests.miss_rate_below,
        ))?;
    }
    Ok(())
}
