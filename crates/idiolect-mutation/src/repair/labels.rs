use idiolect_validator::mask::task_validator;
use idiolect_validator::penalty::keyword_match;
use idiolect_validator::task::TaskKind;

use super::Draft;
use super::prose::Prose;
use crate::guard::{FlagKind, Rules};

/// Characters before a colon among which a label is looked for.
const LONGEST_LABEL: usize = 64;

/// Takes out the colons that make labels of other tasks; where a line begins with nothing but the label, all of it. A label at
/// the very beginning goes in any task.
pub(super) fn without_labels(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let flags = rules.check(prose.text());
    let has = |wanted: &[FlagKind]| flags.iter().any(|flag| wanted.contains(&flag.kind));
    if has(&[FlagKind::Label])
        && let Some(rest) = after_first_label(prose)
    {
        drafts.push(Draft::new(rest, "the label at the start taken off"));
    }
    if let Some(kind) = rules.kind()
        && has(&[FlagKind::KeywordMatch, FlagKind::TaskValidator])
    {
        let (text, n_labels) = without_foreign(kind, prose);
        let note = if n_labels == 1 { "a label".to_owned() } else { format!("{n_labels} labels") };
        drafts.push(Draft::new(text, format!("{note} of other tasks taken out, or the colon")));
    }
    drafts
}

fn after_first_label<'a>(prose: &Prose<'a>) -> Option<&'a str> {
    let text = prose.text().trim_start();
    prose.phrases().label_at_start(text)?;
    let (_, rest) = text.split_once(':')?;
    let rest = rest.trim_start_matches(['*', '_']).trim_start();
    // Quotes around what the label names stay.
    (!prose.is_code(prose.text().len() - text.len())).then_some(rest)
}

fn without_foreign(kind: TaskKind, prose: &Prose<'_>) -> (String, usize) {
    let text = prose.text();
    let mut out = String::with_capacity(text.len());
    let mut n_labels = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        if c != ':' || prose.is_code(i) || !ends_label(kind, &out) {
            out.push(c);
            continue;
        }
        n_labels += 1;
        let line = out.rfind('\n').map_or(0, |at| at + 1);
        if is_bare_label(prose, &out[line..]) {
            out.truncate(line);
            while chars.next_if(|(_, c)| matches!(c, ' ' | '\t' | '*' | '_')).is_some() {}
            if out.is_empty() {
                while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            }
        } else if chars.peek().is_some_and(|(_, next)| next.is_alphanumeric()) {
            out.push(' ');
        }
    }
    (out, n_labels)
}

/// Says whether a colon after this text would make a foreign label. What is before an earlier colon has no part in it.
fn ends_label(kind: TaskKind, before: &str) -> bool {
    let start = before.char_indices().rev().take(LONGEST_LABEL).last().map_or(before.len(), |(i, _)| i);
    let near = &before[start..];
    let near = near.rsplit(':').next().unwrap_or(near);
    let label = format!("{near}:");
    task_validator(kind, &label) == 0.0 || keyword_match(kind, &label) > 0.0
}

/// Says whether a line so far is nothing but a label's name, with numbers and marks around it.
fn is_bare_label(prose: &Prose<'_>, line: &str) -> bool {
    let name = line.trim_matches(|c: char| !c.is_alphabetic());
    let is_label = |name: &str| prose.phrases().labels.iter().any(|label| label.trim_end_matches(':') == name);
    let name = name.to_lowercase();
    is_label(&name) || name.strip_suffix(" context").is_some_and(is_label)
}
