//! The tokens that stages look back on.

use crate::Scope;

/// How often each token appears, by token.
#[derive(Clone, Debug, Default)]
struct Counts(Vec<(u32, u32)>);

impl Counts {
    fn add(&mut self, token: u32) {
        match self.0.binary_search_by_key(&token, |entry| entry.0) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (token, 1)),
        }
    }

    fn remove(&mut self, token: u32) {
        if let Ok(at) = self.0.binary_search_by_key(&token, |entry| entry.0) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }
}

/// What a stage looks back on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) last_n: Option<u32>,
    pub(crate) scope: Scope,
}

/// The last tokens of a history, counted.
#[derive(Clone, Debug)]
struct Window {
    n_most: usize,
    /// Where in the history the window begins.
    begin: usize,
    counts: Counts,
}

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The prompt's tokens, where any stage looks at them, and those drawn.
    tokens: Vec<u32>,
    windows: Vec<Window>,
}

impl History {
    /// Starts with a prompt.
    pub(crate) fn new(reaches: &[Reach], prompt: &[u32]) -> Self {
        let mut history = Self::default();
        if reaches.iter().any(|reach| reach.scope == Scope::All) {
            history.tokens.extend_from_slice(prompt);
        }
        let n = history.tokens.len();
        for reach in reaches {
            let n_most = reach.last_n.map_or(usize::MAX, |n| n as usize);
            let begin = match reach.scope {
                Scope::All => n.saturating_sub(n_most),
                Scope::Output => n,
            };
            let mut counts = Counts::default();
            history.tokens[begin..].iter().for_each(|token| counts.add(*token));
            history.windows.push(Window { n_most, begin, counts });
        }
        history
    }

    /// Makes room for more tokens. Returns how many there is room for.
    pub(crate) fn reserve(&mut self, n: usize) -> usize {
        if self.windows.is_empty() {
            return 0;
        }
        self.tokens.reserve(n);
        let most = self.tokens.len() + n;
        for window in &mut self.windows {
            // A token comes before another goes.
            let counts = &mut window.counts.0;
            counts.reserve(most.min(window.n_most.saturating_add(1)).saturating_sub(counts.len()));
        }
        most
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, token: u32) {
        if self.windows.is_empty() {
            return;
        }
        self.tokens.push(token);
        for window in &mut self.windows {
            window.counts.add(token);
            if self.tokens.len() - window.begin > window.n_most {
                window.counts.remove(self.tokens[window.begin]);
                window.begin += 1;
            }
        }
    }

    /// Returns how often each token appears in a window, by token.
    pub(crate) fn counts(&self, window: usize) -> &[(u32, u32)] {
        &self.windows[window].counts.0
    }

    /// Returns the tokens of a window, oldest first.
    pub(crate) fn tokens(&self, window: usize) -> &[u32] {
        &self.tokens[self.windows[window].begin..]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn windows_count_their_tokens(
            prompt in prop::collection::vec(0u32..6, 0..20),
            output in prop::collection::vec(0u32..6, 0..40),
            n in 0u32..30,
        ) {
            let reaches = [
                Reach { last_n: Some(n), scope: Scope::All },
                Reach { last_n: None, scope: Scope::All },
                Reach { last_n: Some(n), scope: Scope::Output },
                Reach { last_n: None, scope: Scope::Output },
            ];
            let mut history = History::new(&reaches, &prompt);
            output.iter().for_each(|token| history.push(*token));
            for (i, reach) in reaches.iter().enumerate() {
                let all: Vec<u32> = match reach.scope {
                    Scope::All => prompt.iter().chain(&output).copied().collect(),
                    Scope::Output => output.clone(),
                };
                let from = all.len().saturating_sub(reach.last_n.map_or(usize::MAX, |n| n as usize));
                prop_assert_eq!(history.tokens(i), &all[from..]);
                let mut counts = BTreeMap::new();
                all[from..].iter().for_each(|token| *counts.entry(*token).or_insert(0u32) += 1);
                prop_assert_eq!(history.counts(i), counts.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
