//! Prompts that outlive their runs, for later ones that begin alike.

use super::memory::{Memory, Path, SegmentId};

/// The fewest tokens that are shared: below that, computing them costs less than one more part to attend to.
pub(super) const FEWEST: usize = 16;

/// Prompts without a run. What was not used for the longest time is given up first.
#[derive(Debug)]
pub(super) struct Kept {
    prompts: Vec<Prompt>,
    /// Tokens that may be kept.
    most: usize,
    time: u64,
}

#[derive(Debug)]
struct Prompt {
    tokens: Vec<u32>,
    path: Path,
    used: u64,
}

/// Returns how many tokens two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Kept {
    pub(super) const fn new(most: usize) -> Self {
        Self { prompts: Vec::new(), most, time: 0 }
    }

    /// Finds the prompt that begins like some tokens for the longest: its place, and for how many.
    pub(super) fn find(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let found = self.prompts.iter().enumerate().map(|(place, prompt)| (place, common(&prompt.tokens, tokens)));
        found.max_by_key(|(_, len)| *len)
    }

    /// Shares the first `len` positions of a prompt.
    pub(super) fn share(&mut self, place: usize, len: usize, memory: &mut Memory) -> Path {
        self.time += 1;
        self.prompts.get_mut(place).map_or_else(Path::default, |prompt| {
            prompt.used = self.time;
            prompt.path.shared(len, memory)
        })
    }

    /// Keeps a prompt, as far as there is room, with the holds of its path.
    pub(super) fn add(&mut self, mut tokens: Vec<u32>, mut path: Path, memory: &mut Memory) {
        tokens.truncate(path.len().min(self.most));
        if tokens.len() < path.len() {
            let shorter = path.shared(tokens.len(), memory);
            path.release(memory);
            path = shorter;
        }
        if tokens.len() < FEWEST || !path.fit(memory) {
            path.release(memory);
            return;
        }
        self.time += 1;
        if let Some(covers) = self.prompts.iter_mut().find(|prompt| prompt.tokens.starts_with(&tokens)) {
            covers.used = self.time;
            path.release(memory);
            return;
        }
        let (covered, rest) = self.prompts.drain(..).partition(|prompt| tokens.starts_with(&prompt.tokens));
        let covered: Vec<Prompt> = covered;
        self.prompts = rest;
        covered.into_iter().for_each(|mut prompt| prompt.path.release(memory));
        self.prompts.push(Prompt { tokens, path, used: self.time });
        while self.tokens(memory) > self.most && self.give_up_one(memory) {}
    }

    /// Gives up the prompt that was not used for the longest time, of those whose end frees memory if there are any.
    pub(super) fn give_up_one(&mut self, memory: &mut Memory) -> bool {
        let frees = |prompt: &Prompt| prompt.path.parts().iter().any(|(id, _)| memory.is_sole(*id));
        let oldest = self.prompts.iter().enumerate().min_by_key(|(_, prompt)| (!frees(prompt), prompt.used));
        let Some((place, _)) = oldest else { return false };
        self.prompts.remove(place).path.release(memory);
        true
    }

    /// Returns how many tokens are kept.
    pub(super) fn tokens(&self, memory: &Memory) -> usize {
        let mut ids: Vec<SegmentId> =
            self.prompts.iter().flat_map(|prompt| prompt.path.parts()).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().map(|id| memory.capacity(id)).sum()
    }

    /// Says whether nothing is kept.
    pub(super) const fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Forgets everything; the segments are forgotten elsewhere.
    pub(super) fn clear(&mut self) {
        self.prompts.clear();
    }
}
