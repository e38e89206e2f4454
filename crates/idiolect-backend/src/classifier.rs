//! The contract of a text classifier.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::Error;

/// What a classifier reads: one text, or two that its tokenizer joins in its own way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassifierInput {
    /// The text, or the first of two.
    pub text: String,
    /// The second text.
    pub second: Option<String>,
}

impl ClassifierInput {
    /// Takes one text.
    #[must_use]
    pub fn one(text: impl Into<String>) -> Self {
        Self { text: text.into(), second: None }
    }

    /// Takes two texts.
    #[must_use]
    pub fn pair(first: impl Into<String>, second: impl Into<String>) -> Self {
        Self { text: first.into(), second: Some(second.into()) }
    }
}

/// A model that gives a text a number for each of its labels: a reward model has one label, a classifier several.
///
/// # Contract
/// One row for each input, in order, of [`n_labels`](Self::n_labels) raw logits, of any range. A row does not depend on the
/// other inputs of the call beyond rounding. Inputs longer than the model reads are cut at their end. Dropping the future
/// stops the work.
#[async_trait]
pub trait Classifier: Debug + Send + Sync + 'static {
    /// Returns the model's name.
    fn name(&self) -> &str;

    /// Returns how many labels there are.
    fn n_labels(&self) -> usize;

    /// Computes the logits of inputs.
    async fn logits(&self, inputs: &[ClassifierInput]) -> Result<Vec<Vec<f32>>, Error>;
}
