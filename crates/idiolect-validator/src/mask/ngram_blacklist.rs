use serde::{Deserialize, Serialize};

use super::WordPiece;
use super::ngram_counts::NgramCounts;
use super::partial_ratio::Searched;

/// The figures of the n-gram blacklist.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NgramRules {
    /// Tokens and words of the shortest phrase.
    pub n_min: usize,
    /// Tokens of the longest phrase.
    pub n_max: usize,
    /// How many tokens of a completion count.
    pub token_limit: usize,
    /// Significance grows by this factor with each word after the first.
    pub word_factor: f64,
    /// Significance of a one-word phrase that is in every completion.
    pub frequency_multiplier: f64,
    /// Phrases of more significance are forbidden.
    pub boundary: f64,
    /// How alike, 0 to 100, a part of a reply must be to a forbidden phrase: more than this.
    pub partial_ratio_boundary: u32,
    /// Phrases in fewer completions than this share have no significance.
    pub support: f64,
    /// Counts are pruned, and significance is computed again, every 1 / `error` completions.
    pub error: f64,
    /// Beyond this number of completions all counts are halved.
    pub half_life: u64,
    /// Beyond this number of counts they are pruned at once.
    pub memory_limit: usize,
}

impl NgramRules {
    fn window(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be at least 1")]
        let window = (1.0 / self.error).ceil().clamp(1.0, 1e12) as u64;
        window
    }
}

/// A phrase that a reply was refused for.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The phrase.
    pub phrase: String,
    /// Its significance.
    pub significance: f64,
}

/// The counter of stock phrases of opentensor/text-prompting 2.1 (`prompting/validators/reward/blacklist.py`): lossy
/// counting (Manku and Motwani 2002) of token n-grams in everything that miners say. There is no recording; it follows
/// the formula.
#[derive(Debug)]
pub struct NgramBlacklist {
    rules: NgramRules,
    tokenizer: WordPiece,
    counts: NgramCounts,
    n_completions: u64,
    window_index: u64,
    significance: Vec<Match>,
    updated_at: u64,
}

impl NgramBlacklist {
    /// Makes a counter that has seen nothing.
    #[must_use]
    pub fn new(rules: NgramRules, tokenizer: WordPiece) -> Self {
        Self {
            rules,
            tokenizer,
            counts: NgramCounts::default(),
            n_completions: 0,
            window_index: 1,
            significance: Vec::new(),
            updated_at: 0,
        }
    }

    /// Counts the completions of a step; validators do so before they score them.
    pub fn add<'a>(&mut self, completions: impl IntoIterator<Item = &'a str>) {
        for completion in completions {
            let tokens = self.tokens(completion);
            if tokens.len() >= self.rules.n_min.max(1) {
                self.count(&tokens);
            }
        }
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        let kept = |c: &char| c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '(' | ')' | '|');
        let text: String = text.to_lowercase().chars().filter(kept).collect();
        let mut tokens = self.tokenizer.encode(&text);
        tokens.truncate(self.rules.token_limit);
        tokens
    }

    fn count(&mut self, tokens: &[u32]) {
        let before = u32::try_from(self.window_index.saturating_sub(1)).unwrap_or(u32::MAX);
        self.counts.add(tokens, self.rules.n_min.max(1)..=self.rules.n_max, before);
        self.n_completions += 1;
        let window = self.rules.window();
        if self.n_completions.is_multiple_of(window) {
            self.window_index = self.n_completions.div_ceil(window);
            self.prune();
        }
        if self.counts.len() > self.rules.memory_limit {
            self.window_index += 1;
            self.prune();
        }
        if self.n_completions > self.rules.half_life {
            self.halve();
        }
    }

    fn prune(&mut self) {
        let least = self.window_index;
        self.counts.retain(|count, before| u64::from(count) + u64::from(before) > least);
    }

    fn halve(&mut self) {
        self.n_completions = self.n_completions.div_ceil(2);
        self.window_index = self.n_completions.div_ceil(self.rules.window());
        self.counts.halve();
        self.updated_at = 0;
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.counts.clear();
        (self.n_completions, self.window_index, self.updated_at) = (0, 1, 0);
        self.significance.clear();
    }

    /// Computes the phrases' significance, most significant first, now rather than when a window is full.
    pub fn update(&mut self) -> &[Match] {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let float = |n: u64| n as f64;
        let total = float(self.n_completions);
        let least = (self.rules.support * total).max(float(self.window_index + 1));
        let mut phrases = Vec::new();
        for (ngram, count, before) in self.counts.iter() {
            let seen = f64::from(count) + f64::from(before);
            if seen <= least {
                continue;
            }
            let phrase = self.tokenizer.decode(ngram);
            let n_words = phrase.split_whitespace().count();
            if n_words >= self.rules.n_min && n_words > 0 {
                let power = i32::try_from(n_words - 1).unwrap_or(i32::MAX);
                let significance = self.rules.word_factor.powi(power) * seen / total * self.rules.frequency_multiplier;
                phrases.push(Match { phrase, significance });
            }
        }
        phrases.sort_by(|a, b| b.significance.total_cmp(&a.significance).then_with(|| a.phrase.cmp(&b.phrase)));
        self.significance = phrases;
        self.updated_at = self.n_completions;
        &self.significance
    }

    /// Returns the phrase that a reply is refused for, the most significant first.
    pub fn find(&mut self, reply: &str) -> Option<Match> {
        if self.n_completions.saturating_sub(self.updated_at) > self.rules.window() {
            self.update();
        }
        let mut forbidden = self.significance.iter().take_while(|m| m.significance > self.rules.boundary).peekable();
        forbidden.peek()?;
        let mut searched = Searched::new(&reply.to_lowercase());
        forbidden.find(|m| searched.has(&m.phrase, self.rules.partial_ratio_boundary)).cloned()
    }

    pub(crate) fn saved(&self) -> SavedNgrams {
        let counts = self.counts.iter().map(|(ngram, count, before)| (ngram.to_vec(), count, before));
        let significance = self.significance.iter().map(|m| (m.phrase.clone(), m.significance));
        SavedNgrams {
            vocabulary: self.tokenizer.fingerprint(),
            n_completions: self.n_completions,
            window_index: self.window_index,
            updated_at: self.updated_at,
            counts: counts.collect(),
            significance: significance.collect(),
        }
    }

    /// Takes the counts of an earlier run, which were made with the same vocabulary.
    pub(crate) fn restore(&mut self, saved: SavedNgrams) -> Result<(), String> {
        let vocabulary = self.tokenizer.fingerprint();
        if saved.vocabulary != vocabulary {
            let found = saved.vocabulary;
            return Err(format!("ngrams.vocabulary is {found}, expected {vocabulary}, that of the tokenizer in use"));
        }
        if let Some((phrase, significance)) = saved.significance.iter().find(|(_, s)| !s.is_finite()) {
            let n = phrase.chars().count();
            return Err(format!(
                "ngrams.significance of a phrase of {n} characters is {significance}, expected a finite number"
            ));
        }
        self.n_completions = saved.n_completions;
        self.window_index = saved.window_index;
        self.updated_at = saved.updated_at;
        self.counts = NgramCounts::default();
        saved.counts.iter().for_each(|(ngram, count, before)| self.counts.put(ngram, *count, *before));
        let phrase = |(phrase, significance)| Match { phrase, significance };
        self.significance = saved.significance.into_iter().map(phrase).collect();
        Ok(())
    }

    /// Returns 0 for a reply that the prompt contains or that has a stock phrase in it, 1 for any other. An empty reply is
    /// contained in every prompt.
    pub fn mask(&mut self, prompt: &str, reply: &str) -> f32 {
        if prompt.contains(reply) || self.find(reply).is_some() { 0.0 } else { 1.0 }
    }
}

/// A counter's contents on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNgrams {
    vocabulary: u64,
    n_completions: u64,
    window_index: u64,
    updated_at: u64,
    counts: Vec<(Vec<u32>, u32, u32)>,
    significance: Vec<(String, f64)>,
}
