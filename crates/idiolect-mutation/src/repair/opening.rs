use idiolect_validator::task::{ContentMatch, Criterion, TaskKind};

use super::Draft;
use super::prose::{Prose, capitalised};
use crate::guard::{FlagKind, Rules, starts_with};

/// Nothing that comes before a reply is longer, in bytes.
const LONGEST_PREAMBLE: usize = 240;

/// Places that are tried.
const MOST_PLACES: usize = 8;

/// Takes off the first words up to a colon, a line's or a sentence's end.
pub(super) fn without_preamble(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let flags = rules.check(prose.text());
    if !flags.iter().any(|flag| matches!(flag.kind, FlagKind::Preamble | FlagKind::ContentMatch)) {
        return Vec::new();
    }
    let text = prose.text();
    let mut chars = text.char_indices().take_while(|(i, _)| *i < LONGEST_PREAMBLE).peekable();
    let mut drafts = Vec::new();
    while let Some((i, c)) = chars.next() {
        let is_end = match c {
            '\n' => true,
            ':' | '.' | '!' | '?' => chars.peek().is_some_and(|(_, next)| next.is_whitespace()),
            _ => false,
        };
        if is_end && !prose.is_code(i) && drafts.len() < MOST_PLACES {
            let rest = text[i + c.len_utf8()..].trim_start();
            drafts.push(Draft::new(capitalised(rest), "what came before the reply itself taken off"));
        }
    }
    drafts
}

/// Begins the text where it begins as a criterion asks: at a sentence, a line, or after a comma, a colon or a quotation mark. Of a
/// question that is one sentence alone.
pub(super) fn asked_opening(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let breaches = rules.breaches(prose.text());
    let mut drafts = Vec::new();
    for breach in breaches {
        match breach.criterion {
            Criterion::Words { place: ContentMatch::StartsWith, negated: false, words } => {
                let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
                drafts.extend(beginning_with(rules, prose, &words, "begun at a word that was asked for"));
            }
            Criterion::Words { place: ContentMatch::StartsWith, negated: true, .. } => {
                if let Some((_, rest)) = prose.text().split_once(", ") {
                    drafts.push(Draft::new(capitalised(rest.trim_start()), "the first words taken off"));
                }
            }
            // A question that is too long may have something before it.
            Criterion::Length { .. } if rules.kind() == Some(TaskKind::Followup) => {
                let words = &prose.phrases().question_words;
                drafts.extend(beginning_with(rules, prose, words, "what came before the question taken off"));
            }
            _ => {}
        }
    }
    drafts
}

fn beginning_with(rules: &Rules, prose: &Prose<'_>, words: &[String], note: &str) -> Vec<Draft> {
    let text = prose.text();
    let is_question = rules.kind() == Some(TaskKind::Followup);
    let places = places(prose).filter(|&at| words.iter().any(|word| begins_with_word(&text[at..], word)));
    let drafts = places.map(|at| {
        let rest = &text[at..];
        let end = if is_question { rest.find('?').map_or(rest.len(), |mark| mark + 1) } else { rest.len() };
        Draft::new(capitalised(&rest[..end]), note)
    });
    drafts.take(MOST_PLACES).collect()
}

/// Places where a clause begins, the very first left out.
fn places<'a>(prose: &'a Prose<'_>) -> impl Iterator<Item = usize> + 'a {
    let text = prose.text();
    let mut is_boundary = false;
    text.char_indices().filter_map(move |(i, c)| {
        let begins = is_boundary && c.is_alphanumeric() && !prose.is_code(i);
        if c.is_alphanumeric() {
            is_boundary = false;
        } else if matches!(c, '.' | '!' | '?' | ':' | ';' | ',' | '\n' | '"' | '“' | '\'' | '*' | ')') {
            is_boundary = true;
        }
        (begins && i > 0).then_some(i)
    })
}

fn begins_with_word(text: &str, word: &str) -> bool {
    // As long in characters as the word, whatever the letter case makes of it.
    let n_chars = word.chars().count();
    starts_with(text, word) && text.chars().nth(n_chars).is_none_or(|next| !next.is_alphanumeric() && next != '_')
}
