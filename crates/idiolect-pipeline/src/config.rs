//! How replies are made.

use std::time::Duration;

use idiolect_backend::Sampling;
use idiolect_uniqueness::{Retention, SelectorConfig};
use serde::{Deserialize, Serialize};

/// What is kept of the prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorePrompts {
    /// Their text.
    #[default]
    All,
    /// A hash: equal prompts can be told to be equal, and a guessed prompt can be confirmed.
    Hash,
    /// Nothing.
    None,
}

/// What is kept of a reply, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    /// What is kept of the prompts.
    pub store_prompts: StorePrompts,
    /// Longest prompt that is kept, in bytes of all its messages; of a longer one only the hash is.
    pub max_prompt_bytes: usize,
    /// Whether the candidates' texts are kept. Without them only figures are.
    pub store_replies: bool,
    /// How long, and how many.
    pub retention: Retention,
    /// Replies that may wait to be written. They are written together, at most 100 ms late where the disk keeps up; a
    /// process that is killed loses those that still wait. When the disk is slower than the miner, the first reply that finds no room
    /// waits for it for at most 50 ms; from then on replies are sent without a record until there is room again.
    pub queue: usize,
}

impl Default for RecordConfig {
    fn default() -> Self {
        let retention = Retention { max_replies: Some(100_000), max_age: Some(Duration::from_secs(30 * 24 * 3600)) };
        Self {
            store_prompts: StorePrompts::All,
            max_prompt_bytes: 64 << 10,
            store_replies: true,
            retention,
            queue: 4096,
        }
    }
}

/// How replies are made.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineConfig {
    /// Candidates drawn for one reply, 1 to [`PipelineConfig::MAX_CANDIDATES`].
    pub candidates: usize,
    /// Recipes that share them, at least 1; the first is the no-op.
    pub recipes: usize,
    /// Backends of a [`Pool`](idiolect_backend::Pool) that each answer a share of every prompt's candidates: their names, and
    /// their weights. Empty: the backend decides who answers. A caller that names a model, and whom nothing may be varied
    /// for, is answered as if it were.
    pub families: Vec<(String, u32)>,
    /// Sampling of candidates, unless the caller dictates it. Where it has a `seed`, that is every prompt's: the same prompt gets
    /// the same recipes, and the same candidates of a backend that keeps seeds, whenever it comes. Its `logprobs` are not used.
    pub sampling: Sampling,
    /// Most tokens that a caller may dictate.
    pub max_dictated_tokens: u32,
    /// How the choice is made.
    pub selector: SelectorConfig,
    /// Replies of ours that candidates are compared with.
    pub history: usize,
    /// How many others answer the same prompt: what is not seen of them is estimated.
    pub rivals: usize,
    /// Where draws of recipes start from: with one seed the same requests in the same order draw alike, and in any order where
    /// `sampling` has a seed, too. `None` takes the one of `sampling`, or else a new number at each start; two miners should
    /// not share one.
    pub seed: Option<u64>,
    /// Task names for which `availability` says yes.
    pub tasks: Vec<String>,
    /// Time first set aside for embedding, a candidate; measured from then on.
    pub score_reserve: Duration,
    /// Time first set aside for the reward model, a candidate; measured from then on.
    pub reward_reserve: Duration,
    /// What is kept.
    pub record: RecordConfig,
}

impl PipelineConfig {
    /// Most candidates, and most completions of one request.
    pub const MAX_CANDIDATES: usize = 64;
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            candidates: 4,
            recipes: 2,
            families: Vec::new(),
            sampling: Sampling { temperature: Some(0.8), top_p: Some(0.95), ..Sampling::default() },
            max_dictated_tokens: 4096,
            selector: SelectorConfig::default(),
            history: 4096,
            rivals: 49,
            seed: None,
            tasks: ["TextPrompting", "Prompting", "InferenceTask"].map(str::to_owned).to_vec(),
            score_reserve: Duration::from_millis(150),
            reward_reserve: Duration::from_millis(150),
            record: RecordConfig::default(),
        }
    }
}
