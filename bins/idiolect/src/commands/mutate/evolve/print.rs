//! What came of a run, for readers.

use idiolect_mutation::evolve::{Evolution, Gain, Report, TrialPrompt};
use idiolect_mutation::tokens;
use serde::Serialize;

use crate::output;

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Found<'a> {
    #[serde(flatten)]
    pub(super) report: &'a Report,
    /// What `lint` finds in the new library and not in the old one.
    pub(super) lint: &'a [String],
    /// Whether it was stopped before its end.
    pub(super) stopped: bool,
}

#[derive(Serialize)]
struct Estimate {
    prompts: usize,
    replies: usize,
    proposals: usize,
    tokens: u64,
}

/// Prints what a run would take, at most.
pub(super) fn estimate(
    evolution: &Evolution<'_>,
    prompts: &[TrialPrompt],
    max_tokens: u32,
    json: bool,
) -> anyhow::Result<()> {
    let (replies, proposals) = evolution.estimate();
    let asked: u64 = prompts.iter().map(|prompt| u64::from(tokens::estimate(&prompt.text))).sum();
    let each = asked / prompts.len().max(1) as u64 + u64::from(max_tokens);
    // A question for a proposal shows some five texts, and its answer has 64 tokens.
    let tokens = replies as u64 * each + proposals as u64 * 400;
    let estimate = Estimate { prompts: prompts.len(), replies, proposals, tokens };
    if json {
        return output::json(&estimate);
    }
    output::say(format!(
        "{} prompts: at most {replies} replies and {proposals} proposals, some {tokens} tokens",
        estimate.prompts
    ))?;
    Ok(())
}

fn shown(gain: Gain) -> String {
    format!("{:+.3} ({:+.3} to {:+.3})", gain.value, gain.low, gain.high)
}

/// Prints the elites, and what they are better by.
pub(super) fn print(report: &Report, findings: &[String], stopped: bool, has_state: bool) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = report
        .elites
        .iter()
        .map(|elite| {
            vec![
                elite.niche.to_string(),
                elite.operator.clone(),
                elite.origin.to_owned(),
                format!("{:.3}", elite.fitness),
                shown(elite.gain),
                elite.held_out.map_or_else(String::new, shown),
            ]
        })
        .collect();
    output::columns(&["niche", "operator", "from", "fitness", "gain over plain", "held out"], &rows)?;
    for elite in report.elites.iter().filter(|elite| elite.origin != "library") {
        output::say(format!("{}: {}", elite.operator, elite.text))?;
    }
    output::say(format!(
        "{} generations, {} replies, {} tokens; {} texts tried, {} of them without the model, which was asked {} times",
        report.generations, report.n_replies, report.n_tokens, report.n_proposed, report.n_from_clauses, report.n_asked
    ))?;
    if !report.rejected.is_empty() {
        let reasons = report.rejected.iter().map(|(why, n)| format!("{why:?} {n}"));
        output::say(format!("refused: {}", reasons.collect::<Vec<_>>().join(", ")))?;
    }
    if let Some(held) = &report.held_out {
        output::say(format!(
            "on {} prompts kept back, beside the rival alone: plain {:.3}, elites at the start {:.3}, now {:.3}, gain {}; best of each task {}",
            held.gain.n,
            held.plain,
            held.start,
            held.elites,
            shown(held.gain),
            shown(held.gain_of_best)
        ))?;
    }
    for finding in findings {
        output::say(format!("lint: {finding}"))?;
    }
    if stopped {
        let how = if has_state {
            "start it again with the same --state, and it goes on"
        } else {
            "what was answered is lost; with --state it would go on"
        };
        output::say(format!("stopped before its end: {how}"))?;
    }
    Ok(())
}
