//! What a backend can do.

use idiolect_sampling::{Stage, StageKind};

use crate::{Error, Sampling};

/// How far a backend can score a given text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScoreSupport {
    /// [`Backend::score`](crate::Backend::score) fails with [`Error::Unsupported`](crate::Error::Unsupported).
    #[default]
    None,
    /// The log-probability of each token of the text.
    Tokens,
    /// The same, and the whole row of logits behind each, or what counts of it: all that a
    /// [`ScoreRequest`](crate::ScoreRequest) can ask for.
    Rows,
}

/// Plain facts about a backend. They don't change while it lives.
///
/// The default is the most cautious answer, so that a backend written against an older version of this crate keeps
/// its meaning when a field is added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The model's name.
    pub model: String,
    /// Tokens that prompt and candidate may have together; `None` when unknown.
    pub context_tokens: Option<u32>,
    /// The same seed gives the same candidates.
    pub seed: bool,
    /// Log-probabilities can be asked for.
    pub logprobs: bool,
    /// All `n` candidates come from one pass over the prompt. Without it `n` costs `n` times as much.
    pub batched_candidates: bool,
    /// How far given texts can be scored.
    pub score: ScoreSupport,
    /// [`Sampling::min_tokens`] is heeded.
    pub min_tokens: bool,
    /// The stages that a [`Sampling::chain`] may have, and [`Sampling::constraint`] as one of them. None: the plain
    /// fields of [`Sampling`] are all there is.
    pub stages: Vec<StageKind>,
    /// Every token costs the operator money.
    pub paid: bool,
    /// Family of the model ("llama", "gpt", …), where known: replies of one family are alike.
    pub family: Option<String>,
}

impl Capabilities {
    /// Makes the most cautious capabilities for a named model.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// Refuses sampling with a stage that is not among [`stages`](Self::stages). Without chain and constraint there is
    /// nothing to refuse.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the backend and the stages.
    pub fn check_stages(&self, backend: &str, sampling: &Sampling) -> Result<(), Error> {
        let chain = sampling.chain.as_ref().map(idiolect_sampling::ChainSpec::stages).unwrap_or_default();
        let mut asked: Vec<StageKind> = chain.iter().filter(|stage| !stage.is_off()).map(Stage::kind).collect();
        asked.extend(sampling.constraint.as_ref().map(|_| StageKind::Constraint));
        asked.retain(|kind| !self.stages.contains(kind));
        asked.dedup();
        if asked.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = asked.iter().map(|kind| kind.as_str()).collect();
        let what = format!("the sampling stage{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "));
        Err(Error::Unsupported { backend: backend.to_owned(), what })
    }
}

#[cfg(test)]
mod tests {
    use idiolect_sampling::{ChainSpec, ConstraintSpec, Preset, TopK, TopP};

    use super::*;

    #[test]
    fn stages_that_are_not_there_are_named() {
        let mut capabilities = Capabilities::new("m");
        let mut sampling = Sampling { temperature: Some(0.3), top_k: Some(5), ..Sampling::default() };
        capabilities.check_stages("b", &sampling).unwrap();
        sampling.chain = Some(ChainSpec::from(vec![Stage::TopK(TopK { k: 3 }), Stage::TopP(TopP { p: 1.0 })]));
        sampling.constraint = Some(ConstraintSpec::Json);
        let error = capabilities.check_stages("b", &sampling).unwrap_err();
        assert_eq!(error.to_string(), "b does not support the sampling stages top_k, constraint");
        capabilities.stages = vec![StageKind::TopK];
        let error = capabilities.check_stages("b", &sampling).unwrap_err();
        assert_eq!(error.to_string(), "b does not support the sampling stage constraint");
        capabilities.stages = StageKind::ALL.to_vec();
        sampling.chain = Some(Preset::LlamaCpp.into());
        capabilities.check_stages("b", &sampling).unwrap();
    }
}
