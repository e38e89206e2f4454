use idiolect_validator::task::{Criterion, TaskKind, text_prompting};

use super::Draft;
use super::prose::{Prose, capitalised};
use super::sentences::without_sentences;
use crate::guard::Rules;

/// To how many words validators cut questions.
const WORDS: usize = 40;

/// Sentences that are tried.
const MOST_CHOICES: usize = 12;

/// Keeps one question of a text that should be one: the first, as validators cut it, or another that breaks less.
pub(super) fn one_question(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    if rules.kind() != Some(TaskKind::Followup) {
        return Vec::new();
    }
    let n_words = rules.profile().followup_words.unwrap_or(WORDS);
    let cut = |text: &str| text_prompting::cut_followup(text.trim(), n_words).trim().to_owned();
    let mut drafts = vec![Draft::new(cut(prose.text()), "the first question kept alone")];
    let text = prose.text();
    let sentences: Vec<&str> = prose.sentences().into_iter().map(|sentence| text[sentence].trim()).collect();
    let (questions, statements): (Vec<&str>, Vec<&str>) =
        sentences.into_iter().filter(|sentence| !sentence.is_empty()).partition(|sentence| sentence.contains('?'));
    // Without any question validators take the last sentence for one.
    let (choices, note) = if questions.is_empty() {
        (statements, "one sentence kept, with a question mark")
    } else {
        (questions, "another question than the first kept alone")
    };
    drafts.extend(choices.into_iter().take(MOST_CHOICES).map(|sentence| Draft::new(capitalised(&cut(sentence)), note)));
    drafts
}

/// Takes question marks out: the questions themselves, or else the marks alone.
pub(super) fn without_question_marks(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    let breaches = rules.breaches(prose.text());
    if !breaches.iter().any(|breach| *breach.criterion == Criterion::NoQuestionMarks) {
        return Vec::new();
    }
    let mut drafts = Vec::new();
    if let Some((text, n_sentences)) = without_sentences(prose, |sentence| sentence.contains('?')) {
        drafts.push(Draft::new(text, format!("{n_sentences} questions taken out")));
    }
    let marks = |i: usize, c: char| if c == '?' && !prose.is_code(i) { '.' } else { c };
    let text: String = prose.text().char_indices().map(|(i, c)| marks(i, c)).collect();
    drafts.push(Draft::new(text, "question marks made full stops"));
    drafts
}
