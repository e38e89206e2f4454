use idiolect_validator::task::{Criterion, TaskKind, Unit};

use super::Draft;
use super::prose::{Prose, without_marker};
use crate::guard::{Rules, unit_name};

/// Ends of sentences that are tried on either side of the length asked for.
const NEAR: usize = 3;

/// Cuts the text at the end of a sentence near the length asked for. Of paragraphs, too many are joined and too few divided
/// before any is cut.
pub(super) fn shortened(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    // Validators cut questions themselves.
    if rules.kind() == Some(TaskKind::Followup) {
        return Vec::new();
    }
    let mut drafts = Vec::new();
    for breach in rules.breaches(prose.text()) {
        let Criterion::Length { target, unit } = *breach.criterion else { continue };
        let target = target as usize;
        let found = unit.count(prose.text());
        if unit == Unit::Paragraphs {
            drafts.extend(paragraphs(prose, found, target));
        }
        if unit == Unit::Sentences {
            drafts.extend(full_stops(prose, found, target));
        }
        if found > target {
            drafts.extend(cut(prose, unit, target));
        }
    }
    drafts
}

fn cut(prose: &Prose<'_>, unit: Unit, target: usize) -> Vec<Draft> {
    let text = prose.text();
    let start = text.len() - text.trim_start().len();
    let ends = prose.ends();
    // No unit counts less of a longer text.
    let over = ends.partition_point(|&end| unit.count(text.get(start..end).unwrap_or_default()) <= target);
    let near = &ends[over.saturating_sub(NEAR)..ends.len().min(over + NEAR)];
    let whole = unit.count(text);
    // Longest first: of equally good ones that is the one.
    let drafts = near.iter().rev().filter_map(|&end| {
        let cut = text.get(start..end)?;
        let (left, unit) = (unit.count(cut), unit_name(unit));
        Some(Draft::new(cut, format!("cut from {whole} to {left} {unit}, {target} asked for")))
    });
    drafts.collect()
}

/// Takes the full stops off items of lists, whose numbers count as sentences already, or puts some to lines that have none.
fn full_stops(prose: &Prose<'_>, found: usize, target: usize) -> Option<Draft> {
    let mut n_left = found.abs_diff(target);
    let mut n_changed = 0;
    let mut out = String::with_capacity(prose.text().len() + n_left);
    for line in prose.lines() {
        let text = line.text.trim_end();
        let last = line.start + text.len().saturating_sub(1);
        let is_open = n_left > 0 && !text.is_empty() && !prose.is_code(last);
        let changed = if !is_open {
            None
        } else if found > target {
            text.strip_suffix('.').filter(|_| without_marker(line.text).is_some()).map(str::to_owned)
        } else {
            text.ends_with(char::is_alphanumeric).then(|| format!("{text}."))
        };
        if line.start > 0 {
            out.push('\n');
        }
        out.push_str(changed.as_deref().unwrap_or(line.text));
        if changed.is_some() {
            n_left -= 1;
            n_changed += 1;
        }
    }
    let what = if found > target { "taken off" } else { "put to" };
    (n_changed > 0)
        .then(|| Draft::new(out, format!("full stops {what} {n_changed} lines, {target} sentences asked for")))
}

fn paragraphs(prose: &Prose<'_>, found: usize, target: usize) -> Option<Draft> {
    let text = prose.text().trim();
    let start = prose.text().len() - prose.text().trim_start().len();
    let mut out = text.to_owned();
    if found > target {
        for _ in target.max(1)..found {
            let at = out.rfind("\n\n").filter(|at| !prose.is_code(start + at))?;
            let from = out[..at].trim_end_matches('\n').len();
            out.replace_range(from..at + 2, "\n");
        }
        return Some(Draft::new(out, format!("{found} paragraphs joined to {target}")));
    }
    let n_missing = target - found;
    let ends: Vec<usize> = prose
        .ends()
        .into_iter()
        .filter_map(|end| end.checked_sub(start))
        .filter(|&end| text.get(end..).is_some_and(|rest| rest.starts_with(' ') && !rest.trim().is_empty()))
        .collect();
    if ends.len() < n_missing {
        return None;
    }
    for i in (0..n_missing).rev() {
        let at = ends[(i + 1) * ends.len() / (n_missing + 1)];
        let next = at + out[at..].len() - out[at..].trim_start().len();
        out.replace_range(at..next, "\n\n");
    }
    Some(Draft::new(out, format!("{found} paragraphs divided to {target}")))
}
