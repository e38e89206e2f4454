use idiolect_validator::task::{ContentMatch, Criterion};

use super::Draft;
use super::prose::Prose;
use crate::guard::Rules;

/// Ends the text before the asking side speaks.
pub(super) fn before_role_leak(_: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let text = prose.text();
    let leak = prose.phrases().role_leak(text).filter(|(at, _)| !prose.is_code(*at));
    leak.map(|(at, _)| Draft::new(text[..at].trim_end(), "cut where the other side would speak")).into_iter().collect()
}

/// Ends the text as a criterion asks.
pub(super) fn asked_ending(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let text = prose.text().trim();
    if text.is_empty() || prose.is_code(prose.text().trim_end().len() - 1) {
        return Vec::new();
    }
    let bare = text.trim_end_matches(['.', '!', ',', ';', ':', '…']);
    let mut drafts = Vec::new();
    for breach in rules.breaches(prose.text()) {
        match breach.criterion {
            Criterion::EndsWithQuestionMark => {
                drafts.push(Draft::new(format!("{bare}?"), "a question mark put at the end"));
            }
            Criterion::Words { place: ContentMatch::EndsWith, negated: false, words } => {
                drafts.extend(words.iter().filter_map(|word| ending_with(text, bare, word)));
            }
            Criterion::Words { place: ContentMatch::EndsWith, negated: true, .. } => {
                drafts.push(Draft::new(format!("{text}."), "a full stop put at the end"));
                drafts.push(Draft::new(bare, "the last mark taken off"));
            }
            _ => {}
        }
    }
    drafts
}

/// A mark is put there; before a word the text is cut.
fn ending_with(text: &str, bare: &str, word: &str) -> Option<Draft> {
    if word.chars().all(|c| c.is_ascii_punctuation()) {
        return Some(Draft::new(format!("{bare}{word}"), "the mark that was asked for put at the end"));
    }
    if !word.is_ascii() {
        return None;
    }
    let at = text.to_ascii_lowercase().rfind(&word.to_ascii_lowercase())?;
    Some(Draft::new(&text[..at + word.len()], "ended at a word that was asked for"))
}
