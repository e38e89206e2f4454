use idiolect_validator::task::{Criterion, TaskKind, text_prompting};

use super::Draft;
use super::prose::Prose;
use super::sentences::without_sentences;
use crate::guard::Rules;

/// To how many words validators cut questions.
const WORDS: usize = 40;

/// Keeps the first question of a text that should be one, as validators cut it.
pub(super) fn one_question(rules: &Rules, prose: &Prose<'_>) -> Vec<Draft> {
    if rules.kind() != Some(TaskKind::Followup) {
        return Vec::new();
    }
    let n_words = rules.profile().followup_words.unwrap_or(WORDS);
    let question = text_prompting::cut_followup(prose.text().trim(), n_words);
    vec![Draft::new(question.trim(), "the first question kept alone")]
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
