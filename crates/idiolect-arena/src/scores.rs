//! Rewards of replies that are kept from run to run.

use std::collections::HashMap;
use std::path::Path;

use idiolect_backend::Error;
use idiolect_uniqueness::lexical::fnv1a;
use idiolect_validator::{Normaliser, RewardModel};
use serde::{Deserialize, Serialize};

use crate::lines::{Lines, LinesError};

/// Replies that a reward model is asked about at once.
const AT_A_TIME: usize = 8;
/// How many rewards the running mean and deviation remember, as validators' do.
const COUNT_LIMIT: usize = 3000;

/// What one reward model said of replies, in memory and, where a folder is named, in a file of JSON lines there.
#[derive(Debug)]
pub struct ScoreCache {
    file: Option<Lines>,
    known: HashMap<(u64, u64), f32>,
}

/// A line: the 64-bit FNV-1a hashes of prompt and reply, and the raw score.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Line {
    prompt: u64,
    reply: u64,
    score: f32,
}

/// Why there are no scores.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// The file cannot be used.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The model failed, or said nothing of some replies.
    #[error("{model} cannot score replies")]
    Model {
        /// The model.
        model: String,
        /// Why.
        source: Error,
    },
}

impl ScoreCache {
    /// Opens the cache of a model in a folder, making both where they are not there. Without a folder nothing is kept.
    ///
    /// # Errors
    /// [`LinesError`].
    pub fn open(folder: Option<&Path>, name: &str) -> Result<Self, LinesError> {
        let Some(folder) = folder else { return Ok(Self { file: None, known: HashMap::new() }) };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        let failed = |source| LinesError::Io { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let (file, lines) = Lines::open::<Line>(&folder.join(format!("{name}.scores.jsonl")))?;
        let known = lines.into_iter().map(|line| ((line.prompt, line.reply), line.score)).collect();
        Ok(Self { file: Some(file), known })
    }

    /// Returns the model's raw score of each reply to its prompt, `(prompt, reply)`, in order. It is asked about those only that are not known
    /// yet; `progress` is told how many pairs are known by now, of how many.
    ///
    /// # Errors
    /// Any [`ScoreError`]. What was computed before is kept.
    pub async fn scores(
        &mut self,
        model: &dyn RewardModel,
        pairs: &[(&str, &str)],
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<Vec<f32>, ScoreError> {
        let key = |(prompt, reply): (&str, &str)| (fnv1a(prompt.bytes()), fnv1a(reply.bytes()));
        let mut n_known = 0;
        for same in pairs.chunk_by(|a, b| a.0 == b.0) {
            let missing: Vec<(&str, &str)> =
                same.iter().copied().filter(|&pair| !self.known.contains_key(&key(pair))).collect();
            for some in missing.chunks(AT_A_TIME) {
                let replies: Vec<String> = some.iter().map(|(_, reply)| (*reply).to_owned()).collect();
                let failed = |source| ScoreError::Model { model: model.name().to_owned(), source };
                let scores = model.scores(some[0].0, &replies).await.map_err(failed)?;
                if scores.len() != some.len() {
                    let context = format!("{} scores for {} replies", scores.len(), some.len());
                    return Err(failed(Error::Internal { context, source: None }));
                }
                let lines: Vec<Line> = some
                    .iter()
                    .zip(&scores)
                    .map(|(&pair, &score)| Line { prompt: key(pair).0, reply: key(pair).1, score })
                    .collect();
                self.known.extend(lines.iter().map(|line| ((line.prompt, line.reply), line.score)));
                if let Some(file) = &mut self.file {
                    file.add(&lines)?;
                }
            }
            n_known += same.len();
            progress(n_known, pairs.len());
        }
        Ok(pairs.iter().filter_map(|&pair| self.known.get(&key(pair)).copied()).collect())
    }
}

/// Returns where each score stands among all of them, in [0, 1], by the arithmetic of validators; 0 for those that are `lowest`, which the model did
/// not look at.
#[must_use]
pub fn normalised(scores: &[f32], lowest: Option<f32>) -> Vec<f32> {
    let looked_at: Vec<f32> =
        scores.iter().map(|&score| if Some(score) == lowest { f32::NAN } else { score }).collect();
    let values = Normaliser::new(COUNT_LIMIT).normalise(&looked_at);
    values.into_iter().map(|value| if value.is_nan() { 0.0 } else { value }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Longer replies are better. Breaks off after some.
    #[derive(Debug)]
    struct Longest {
        n_asked: AtomicUsize,
        most: usize,
    }

    #[async_trait::async_trait]
    impl RewardModel for Longest {
        fn name(&self) -> &str {
            "longest/1"
        }

        async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
            if self.n_asked.fetch_add(replies.len(), Ordering::Relaxed) + replies.len() > self.most {
                return Err(Error::Internal { context: "enough".to_owned(), source: None });
            }
            Ok(replies.iter().map(|reply| (prompt.len() * 100 + reply.len()) as f32).collect())
        }
    }

    fn longest(most: usize) -> Longest {
        Longest { n_asked: AtomicUsize::new(0), most }
    }

    #[tokio::test]
    async fn nothing_is_asked_twice_and_a_run_that_broke_off_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = [("p", "a"), ("p", "abc"), ("p", "a"), ("qq", "ab")];
        let mut cache = ScoreCache::open(Some(dir.path()), "longest/1").unwrap();
        let broken = longest(3);
        let error = cache.scores(&broken, &pairs, &mut |_, _| ()).await.unwrap_err();
        assert_eq!(error.to_string(), "longest/1 cannot score replies");

        let path = dir.path().join("longest_1.scores.jsonl");
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"prompt\": 1")).unwrap();
        let mut cache = ScoreCache::open(Some(dir.path()), "longest/1").unwrap();
        let (model, mut told) = (longest(99), Vec::new());
        let scores = cache.scores(&model, &pairs, &mut |done, of| told.push((done, of))).await.unwrap();
        assert_eq!((scores, told), (vec![101.0, 103.0, 101.0, 202.0], vec![(3, 4), (4, 4)]));
        assert_eq!(model.n_asked.load(Ordering::Relaxed), 1, "the first prompt's are on file");
    }

    #[test]
    fn scores_are_placed_among_all() {
        let places = normalised(&[-1.0, -3.0, -2.0, -11.0, f32::NAN], Some(-11.0));
        assert!(places[0] > 0.8 && places[1] < 0.2 && (places[2] - 0.5).abs() < 1e-3, "{places:?}");
        assert_eq!(places[3..], [0.0, 0.0]);
        assert!(normalised(&[], None).is_empty());
    }
}
