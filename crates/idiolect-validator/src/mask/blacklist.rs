use std::collections::HashSet;

const STOCK: &str = "That is an excellent question.";

/// The exact blacklist of opentensor/validators 1.2 (`openvalidators/reward/blacklist.py`): a stock phrase, the prompt
/// itself, and the best questions and answers of the round. Equal to the recording `blacklist_v1.json`.
#[derive(Clone, Default)]
pub struct Blacklist {
    best: HashSet<String>,
}

/// Replies stay out of logs.
impl std::fmt::Debug for Blacklist {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blacklist").field("n_best", &self.best.len()).finish()
    }
}

impl Blacklist {
    /// Takes in the best question or answer of a step.
    pub fn add_best(&mut self, text: impl Into<String>) {
        self.best.insert(text.into());
    }

    /// Returns what the round added.
    pub(crate) fn best(&self) -> impl Iterator<Item = &String> {
        self.best.iter()
    }

    /// Forgets what a round added.
    pub fn reset(&mut self) {
        self.best.clear();
    }

    /// Returns 0 for a reply that only repeats, 1 for any other.
    #[must_use]
    pub fn mask(&self, prompt: &str, reply: &str) -> f32 {
        f32::from(u8::from(!(reply == STOCK || reply == prompt || self.best.contains(reply))))
    }
}
