use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use crate::python;

use super::WordPiece;
use super::ngram_counts::{Counted, NgramCounts};
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
///
/// Significance is `word_factor^(words - 1)` times the share of completions, as it was read in version 2.1.6 (1.25, with
/// a boundary of 20). Other public versions (1.3, with 6) have `A ** (len(decoded_ngram) - 1)` of a decoded text: they
/// count its characters, which puts nearly every phrase that is frequent enough to have a significance beyond the
/// boundary.
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
        let kept = |c: &char| python::is_word(*c) || python::is_space(*c) || matches!(c, '(' | ')' | '|');
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
        let seen = |counted: &Counted<'_>| f64::from(counted.count) + f64::from(counted.before);
        let mut frequent: Vec<Counted<'_>> = self.counts.iter().filter(|counted| seen(counted) > least).collect();
        frequent.sort_unstable_by_key(|counted| counted.place);
        let mut phrases: Vec<Match> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for counted in frequent {
            let phrase = self.tokenizer.decode(counted.ngram);
            let n_words = phrase.split(python::is_space).filter(|word| !word.is_empty()).count();
            if n_words >= self.rules.n_min && n_words > 0 {
                let power = i32::try_from(n_words - 1).unwrap_or(i32::MAX);
                let frequency = seen(&counted) / total;
                let significance = self.rules.word_factor.powi(power) * frequency * self.rules.frequency_multiplier;
                // Of several n-grams with one text the last one counts, in the place of the first.
                match known.entry(phrase) {
                    Entry::Occupied(place) => phrases[*place.get()].significance = significance,
                    Entry::Vacant(place) => {
                        phrases.push(Match { phrase: place.key().clone(), significance });
                        place.insert(phrases.len() - 1);
                    }
                }
            }
        }
        // Equally significant ones stay in the order in which they were counted first.
        phrases.sort_by(|a, b| b.significance.total_cmp(&a.significance));
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
        let mut counts: Vec<Counted<'_>> = self.counts.iter().collect();
        counts.sort_unstable_by_key(|counted| counted.place);
        let counts = counts.into_iter().map(|counted| (counted.ngram.to_vec(), counted.count, counted.before));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    /// A vocabulary of words in which two lists of tokens have one text: "new york" is a token by itself where one space
    /// divides it.
    const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"new york",
        "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":false}],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,"model":{"type":"WordLevel","unk_token":"?",
        "vocab":{"new york":0,"new":1,"york":2,"is":3,"a":4,"large":5,"town":6,"?":7,"but":8,"not":9}}}"#;

    fn blacklist() -> NgramBlacklist {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, TOKENIZER).unwrap();
        let rules = Profile::text_prompting_2_1().ngram_blacklist.unwrap();
        NgramBlacklist::new(rules, WordPiece::from_file(path).unwrap())
    }

    #[test]
    fn of_ngrams_with_one_text_the_last_counts() {
        let mut blacklist = blacklist();
        blacklist.add(std::iter::repeat_n("new york is a large town", 14));
        blacklist.add(std::iter::repeat_n("new  york is a large town", 6));
        let of_phrase: Vec<Match> =
            blacklist.update().iter().filter(|m| m.phrase == "new york is a large town").cloned().collect();
        assert_eq!(of_phrase.len(), 1, "{of_phrase:?}");
        let expected = 1.25_f64.powi(5) * 6.0 / 20.0 * 100.0;
        assert!((of_phrase[0].significance - expected).abs() < 1e-9, "{of_phrase:?}");
    }

    #[test]
    fn equally_significant_phrases_are_in_the_order_of_their_first_counting() {
        let mut first = blacklist();
        first.add(std::iter::repeat_n("york is a large town but not new", 12));
        let phrases = |blacklist: &mut NgramBlacklist| -> Vec<String> {
            blacklist
                .update()
                .iter()
                .map(|m| m.phrase.clone())
                .filter(|phrase| phrase.split(' ').count() == 5)
                .collect()
        };
        let expected =
            ["york is a large town", "is a large town but", "a large town but not", "large town but not new"];
        assert_eq!(phrases(&mut first), expected);
        let mut second = blacklist();
        second.restore(first.saved()).unwrap();
        assert_eq!(phrases(&mut second), expected);
    }
}
