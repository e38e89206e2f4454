//! What a validator would see of a whole batch of replies: distances, rewards, masks, and how alike the words are.
//!
//! ```
//! use idiolect_uniqueness::GateProfile;
//! use idiolect_uniqueness::report::{Reply, Report};
//!
//! let texts = ["Leaves make sugar out of light.", "Sugar is what leaves make of light.", "Ask a botanist."];
//! // Embeddings come from an `idiolect_backend::Embedder`.
//! let embeddings = [vec![0.9, 0.1, 0.0], vec![0.9, 0.12, 0.0], vec![0.0, 0.2, 0.9]];
//! let replies: Vec<_> = texts
//!     .iter()
//!     .zip(&embeddings)
//!     .zip(["a", "b", "c"])
//!     .map(|((text, embedding), id)| Reply { id, text, embedding })
//!     .collect();
//! let report = Report::new(&GateProfile::TEXT_PROMPTING_2_1, &replies, &[], None);
//! assert_eq!(report.rows[0].nearest.as_deref(), Some("b"));
//! assert!(report.rows[0].masked && !report.rows[2].masked);
//! ```

use idiolect_backend::Embedding;
use serde::Serialize;

use crate::gate::{GateHistory, GateProfile, others, ranked};
use crate::lexical::{
    compression, distinct, jaccard, minhash, ncd, openings, rouge_l, self_bleu, shared_ngrams, simhash, vendi,
};
use crate::vectors::{distance, normalised};

/// Words of an opening that counts as shared.
const OPENING: usize = 5;
/// Words of a run that counts as shared.
const RUN: usize = 8;
/// Hash functions of a signature, which make its standard deviation 0.044 at most.
const HASHES: usize = 128;

/// A reply and its place in an encoder's space.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// What it is called in the report.
    pub id: &'a str,
    /// The text that was encoded.
    pub text: &'a str,
    /// Its embedding; all replies of a report are from one encoder.
    pub embedding: &'a Embedding,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// One for each reply, in order.
    pub rows: Vec<Row>,
    /// All of them together.
    pub summary: Summary,
}

/// What a validator would see of one reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The reply.
    pub id: String,
    /// The other reply of the batch whose distance counts, which is the nearest unless the profile's
    /// [`batch_rank`](GateProfile::batch_rank) is another; `None` when there are not so many others, or the embedding has no
    /// direction.
    pub nearest: Option<String>,
    /// Distance to that one, 1 - |cos|, in [0, 1]. Without one it is 0, as validators have it.
    pub distance: f32,
    /// Reward of that distance, in [0, 1].
    pub batch_reward: f32,
    /// Reward by the history, in [0, 1]; `None` while the history is too short for one.
    pub historic_reward: Option<f32>,
    /// The product of both, in [0, 1]: what a profile without a mask multiplies by.
    pub reward: f32,
    /// Whether the profile's mask takes all. Never under a profile without a mask.
    pub masked: bool,
    /// How alike the words are.
    pub lexical: Lexical,
}

/// Lexical measures of one reply. The nearest other reply is that of [`Row::nearest`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lexical {
    /// Jaccard similarity of the words' sets, with the nearest other reply.
    pub jaccard_words: Option<f64>,
    /// Jaccard similarity of runs of 5 characters, with the nearest other reply.
    pub jaccard_characters: Option<f64>,
    /// The `MinHash` estimate of the words' Jaccard similarity, with the nearest other reply.
    pub minhash: Option<f64>,
    /// Equal bits of the `SimHash` fingerprints of pairs of words, with the nearest other reply.
    pub simhash: Option<f64>,
    /// ROUGE-L's F, with the nearest other reply.
    pub rouge_l: Option<f64>,
    /// Normalised compression distance to the nearest other reply.
    pub ncd: Option<f64>,
    /// BLEU-4 against all others; `None` when there are none.
    pub bleu: Option<f64>,
    /// Share of its runs of 8 words that another reply has as well, those of the prompt left out; `None` for a text without any.
    pub shared_8grams: Option<f64>,
    /// Whether another reply begins with the same 5 words.
    pub shared_opening: bool,
    /// Different pairs of words by all pairs of words of this text; `None` for fewer than two words.
    pub distinct_2: Option<f64>,
    /// Length by compressed length of this text; `None` for an empty one.
    pub compression_ratio: Option<f64>,
}

/// Measures of all replies together, others that were compared with left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many replies there are.
    pub n: usize,
    /// How many the mask takes.
    pub n_masked: usize,
    /// Mean batch reward; `None` of no replies.
    pub mean_batch_reward: Option<f64>,
    /// Vendi score of the embeddings: the effective number of different replies.
    pub vendi: Option<f64>,
    /// Mean BLEU-4 of each against the rest.
    pub self_bleu: Option<f64>,
    /// Different words, pairs and triples of words by all of them.
    pub distinct: [Option<f64>; 3],
    /// Length by compressed length.
    pub compression_ratio: Option<f64>,
    /// Share of replies that begin with the same 5 words as another.
    pub shared_openings: Option<f64>,
    /// Share of replies that have a run of 8 words in common with another.
    pub sharing_8grams: Option<f64>,
}

impl Report {
    /// Reports on `replies` that come in together with `others`, which are compared with and not reported on, to a
    /// validator with this profile and history.
    ///
    /// An embedding without a direction (zero length, a value that is not finite), or of another size than the first, has
    /// distance 0 and is nobody's neighbour. Time and memory: the embeddings are compared pair by pair; the words in time
    /// linear in the length of the texts, except [`rouge_l`], which says what it costs.
    #[must_use]
    pub fn new(
        profile: &GateProfile,
        replies: &[Reply<'_>],
        others: &[Reply<'_>],
        history: Option<&GateHistory>,
    ) -> Self {
        Self::to_prompt(profile, "", replies, others, history)
    }

    /// As [`new`](Self::new); runs of words that the prompt has are not counted as shared ones.
    #[must_use]
    pub fn to_prompt(
        profile: &GateProfile,
        prompt: &str,
        replies: &[Reply<'_>],
        others: &[Reply<'_>],
        history: Option<&GateHistory>,
    ) -> Self {
        let batch: Vec<Reply<'_>> = replies.iter().chain(others).copied().collect();
        let nearest = counting_others(&batch, replies.len(), profile.batch_rank);
        let embeddings: Vec<Embedding> = replies.iter().map(|reply| reply.embedding.clone()).collect();
        let historic = history.and_then(|history| history.rewards_among(&embeddings, batch.len()));
        let words = Words::new(prompt, &batch);
        let rows = replies.iter().zip(&nearest).enumerate().map(|(i, (reply, nearest))| {
            let distance = nearest.map_or(0.0, |(_, distance)| distance);
            let batch_reward = profile.batch.at(distance);
            let historic_reward = historic.as_ref().map(|rewards| rewards[i]);
            Row {
                id: reply.id.to_owned(),
                nearest: nearest.map(|(j, _)| batch[j].id.to_owned()),
                distance,
                batch_reward,
                historic_reward,
                reward: profile.product(batch_reward, historic_reward),
                masked: profile.is_masked(batch_reward, historic_reward),
                lexical: words.of(i, nearest.map(|(j, _)| j)),
            }
        });
        let rows: Vec<Row> = rows.collect();
        let summary = Summary::new(prompt, replies, &embeddings, &rows);
        Self { rows, summary }
    }
}

impl Summary {
    fn new(prompt: &str, replies: &[Reply<'_>], embeddings: &[Embedding], rows: &[Row]) -> Self {
        let texts: Vec<&str> = replies.iter().map(|reply| reply.text).collect();
        let total: f64 = rows.iter().map(|row| f64::from(row.batch_reward)).sum();
        Self {
            n: rows.len(),
            n_masked: rows.iter().filter(|row| row.masked).count(),
            mean_batch_reward: (!rows.is_empty()).then(|| total / rows.len() as f64),
            vendi: vendi::vendi_score_of_embeddings(embeddings),
            self_bleu: self_bleu::self_bleu(&texts),
            distinct: [1, 2, 3].map(|n| distinct::distinct(&texts, n)),
            compression_ratio: compression::compression_ratio(&texts),
            shared_openings: openings::shared_openings(&texts, OPENING),
            sharing_8grams: shared_ngrams::share_of_texts(&texts, prompt, RUN),
        }
    }
}

/// What is measured of all texts of the batch at once.
struct Words<'a> {
    texts: Vec<&'a str>,
    signatures: Vec<minhash::Signature>,
    bleu: Vec<f64>,
    shared: Vec<Option<f64>>,
    openings: Vec<bool>,
}

impl<'a> Words<'a> {
    fn new(prompt: &str, batch: &[Reply<'a>]) -> Self {
        let texts: Vec<&str> = batch.iter().map(|reply| reply.text).collect();
        let hashes = minhash::MinHash::new(0, HASHES);
        Self {
            signatures: texts.iter().map(|text| hashes.signature(text, 1)).collect(),
            bleu: self_bleu::bleu_against_rest(&texts),
            shared: shared_ngrams::shares_against_rest(&texts, prompt, RUN),
            openings: openings::open_as_another(&texts, OPENING),
            texts,
        }
    }

    fn of(&self, i: usize, nearest: Option<usize>) -> Lexical {
        let text = self.texts[i];
        let with = |measure: fn(&str, &str) -> f64| nearest.map(|j| measure(text, self.texts[j]));
        Lexical {
            jaccard_words: with(|a, b| jaccard::words(a, b, 1)),
            jaccard_characters: with(|a, b| jaccard::characters(a, b, 5)),
            minhash: nearest.and_then(|j| self.signatures[i].similarity(&self.signatures[j])),
            simhash: with(|a, b| simhash::similarity(simhash::fingerprint(a, 2), simhash::fingerprint(b, 2))),
            rouge_l: with(|a, b| rouge_l::rouge_l(a, b).f),
            ncd: with(ncd::ncd),
            bleu: self.bleu.get(i).copied(),
            shared_8grams: self.shared[i],
            shared_opening: self.openings[i],
            distinct_2: distinct::distinct(&[text], 2),
            compression_ratio: compression::compression_ratio(&[text]),
        }
    }
}

/// Returns for each of the first `n` replies which other one comes at the rank, and how far that is.
fn counting_others(batch: &[Reply<'_>], n: usize, rank: usize) -> Vec<Option<(usize, f32)>> {
    let units = units(batch.iter().map(|reply| reply.embedding));
    (0..n).map(|i| ranked(others(i, &units), rank)).collect()
}

/// Returns the distance of each embedding to each, in [0, 1], row by row: what a heat map shows. An embedding without a
/// direction, or of another size than the first, is at a distance of 1 from all others. The diagonal is 0.
///
/// # Examples
/// ```
/// use idiolect_uniqueness::report::pairwise_distances;
///
/// let distances = pairwise_distances(&[vec![1.0, 0.0], vec![0.0, 2.0], vec![0.0, 0.0]]);
/// assert_eq!(distances, [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]);
/// ```
#[must_use]
pub fn pairwise_distances(embeddings: &[Embedding]) -> Vec<Vec<f32>> {
    let units = units(embeddings);
    let between = |i: usize, j: usize| match (&units[i], &units[j]) {
        _ if i == j => 0.0,
        (Some(a), Some(b)) => distance(a, b),
        _ => 1.0,
    };
    (0..units.len()).map(|i| (0..units.len()).map(|j| between(i, j)).collect()).collect()
}

/// Returns the embeddings at unit length, less those that cannot be compared with the first.
fn units<'a>(embeddings: impl IntoIterator<Item = &'a Embedding>) -> Vec<Option<Vec<f32>>> {
    let mut units: Vec<Option<Vec<f32>>> = embeddings.into_iter().map(|embedding| normalised(embedding)).collect();
    let size = units.iter().flatten().map(Vec::len).next();
    for unit in &mut units {
        unit.take_if(|unit| Some(unit.len()) != size);
    }
    units
}

#[cfg(test)]
mod tests;
