//! What a text must be before it is tried.

use std::collections::{BTreeSet, HashSet};

use idiolect_backend::Embedding;

use super::Reject;
use super::random::hash;
use crate::lint::{self, FindingKind, RUN};
use crate::{Library, Operator, Place, Task};

/// Most tokens of an evolved text, as of the built-in ones.
const MAX_TOKENS: u32 = 48;
/// Cosine above which two texts are nearly the same, as in PromptBreeder (Fernando et al. 2023).
const NEAR: f32 = 0.95;
/// Seeds with which templates of the library are rendered.
const SEEDS: u64 = 32;

/// All texts that are known, with what a further one must not have.
#[derive(Clone, Debug, Default)]
pub(super) struct Screen {
    runs: HashSet<Vec<String>>,
    forms: HashSet<Vec<String>>,
    embeddings: Vec<Embedding>,
}

impl Screen {
    /// Makes one that knows a library's texts, and returns them: each operator's as it is rendered first for each task.
    pub(super) fn of(library: &Library) -> (Self, Vec<String>) {
        let (mut screen, mut texts) = (Self::default(), BTreeSet::new());
        for operator in library.operators() {
            for task in Task::ALL.into_iter().filter(|task| operator.is_for(*task)) {
                texts.extend(operator.render(task, 0).ok().filter(|text| !text.is_empty()));
                for text in (0..SEEDS).filter_map(|seed| operator.render(task, seed).ok()) {
                    screen.add_text(&text);
                }
            }
        }
        (screen, texts.into_iter().collect())
    }

    pub(super) fn add_text(&mut self, text: &str) {
        let words = words(text);
        self.runs.extend(words.windows(RUN).map(<[String]>::to_vec));
        self.forms.insert(words);
    }

    pub(super) fn add_embedding(&mut self, embedding: Embedding) {
        self.embeddings.push(embedding);
    }

    /// Makes an operator of a text, if it is one that a library takes and that is unlike all known ones.
    pub(super) fn operator(
        &self,
        library: &Library,
        slot: &str,
        place: Place,
        task: Task,
        text: &str,
    ) -> Result<Operator, Reject> {
        if text.contains(['{', '}']) {
            return Err(Reject::Template);
        }
        let words = words(text);
        if words.is_empty() {
            return Err(Reject::Empty);
        }
        if self.forms.contains(&words) {
            return Err(Reject::Duplicate);
        }
        if words.windows(RUN).any(|run| self.runs.contains(run)) {
            return Err(Reject::SharedRun);
        }
        let name = format!("{slot}.e{:08x}", hash(&[text, task.as_str()]) & 0xffff_ffff);
        if library.operators().iter().any(|operator| operator.name == name) {
            return Err(Reject::Duplicate);
        }
        let mut operator = Operator::new(name, slot, place, text);
        operator.tasks = vec![task];
        operator.max_tokens = MAX_TOKENS;
        let alone = Library::new(vec![operator.clone()]).map_err(|_| Reject::Library)?;
        for finding in lint::library(&alone) {
            match finding.kind {
                FindingKind::Mark => return Err(Reject::Mark),
                FindingKind::Quotation => return Err(Reject::Quotation),
                // A slot of the user's own is no fault of the text.
                FindingKind::Slot => {}
                _ => return Err(Reject::Library),
            }
        }
        library.compose(&[&operator], task, 0).map_err(|_| Reject::Library)?;
        Ok(operator)
    }

    /// Says whether a text is nearly a known one.
    pub(super) fn is_near(&self, embedding: &Embedding) -> bool {
        let cosine = |other: &Embedding| embedding.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        self.embeddings.iter().any(|other| other.len() == embedding.len() && cosine(other) > NEAR)
    }
}

/// Returns the words of a text in lower case, without marks: its normal form.
fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’').filter(|w| !w.is_empty());
    parts.map(str::to_lowercase).collect()
}
