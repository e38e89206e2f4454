//! Where a reward was had.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PolicyError;

/// Most bytes of a name that are kept: callers choose some of them.
const MAX_NAME: usize = 96;
/// Most features that are looked at.
const MAX_FEATURES: usize = 16;
/// Features count as if they were no further from 0 than this.
const FEATURE_BOUND: f64 = 4.0;

/// What is known of a request that rewards may depend on.
///
/// Contexts are a tree: what a validator's requests for one task teach is taught, more faintly, to the task with other
/// validators and to the protocol with other tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// The protocol or transport: `grpc`, `http`, …
    pub protocol: String,
    /// The task's name; the digits that number a validator's rounds (`followup3`) do not count.
    pub task: String,
    /// The validator's hotkey; empty where there is none.
    pub validator: String,
    /// Numbers that the linear policy looks at, best between -1 and 1: the prompt's length, the chance of a collision, …
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, f64>,
}

impl Context {
    /// Makes a context without features.
    pub fn new(protocol: impl Into<String>, task: impl Into<String>, validator: impl Into<String>) -> Self {
        let (protocol, task, validator) = (protocol.into(), task.into(), validator.into());
        Self { protocol, task, validator, features: BTreeMap::new() }
    }

    /// Adds a feature.
    #[must_use]
    pub fn with(mut self, feature: impl Into<String>, value: f64) -> Self {
        self.features.insert(feature.into(), value);
        self
    }

    /// Returns the names from the root to this context, without the empty ones at the end.
    pub(crate) fn path(&self) -> Vec<String> {
        let task = self.task.trim_end_matches(|c: char| c.is_ascii_digit());
        let mut path: Vec<String> = [&self.protocol, task, &self.validator].map(|name| cut(name).to_owned()).to_vec();
        while path.last().is_some_and(String::is_empty) {
            path.pop();
        }
        path
    }

    /// Returns the features that are looked at, within bounds, with the names as features of their own.
    pub(crate) fn all_features(&self) -> Vec<(String, f64)> {
        let names = ["protocol", "task", "validator"].into_iter().zip(self.path());
        let mut features: Vec<(String, f64)> = names.map(|(kind, name)| (format!("{kind}={name}"), 1.0)).collect();
        let numbers = self.features.iter().filter(|(_, value)| value.is_finite()).take(MAX_FEATURES);
        features.extend(numbers.map(|(name, v)| (cut(name).to_owned(), v.clamp(-FEATURE_BOUND, FEATURE_BOUND))));
        features
    }

    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        match self.features.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, &value)) => Err(PolicyError::Feature { name: name.clone(), value }),
            None => Ok(()),
        }
    }
}

fn cut(name: &str) -> &str {
    let mut end = name.len().min(MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_from_the_protocol_to_the_validator() {
        assert_eq!(Context::new("grpc", "followup3", "5F").path(), ["grpc", "followup", "5F"]);
        assert_eq!(Context::new("grpc", "", "").path(), ["grpc"]);
        assert_eq!(Context::new("", "", "5F").path(), ["", "", "5F"]);
        assert!(Context::default().path().is_empty());
        assert_eq!(Context::new("é".repeat(200), "", "").path()[0].len(), 96);
    }

    #[test]
    fn features_are_bounded() {
        let context = Context::new("grpc", "answer", "").with("words", 1e300).with("odd", f64::NAN);
        let features = context.all_features();
        let expected = [("protocol=grpc", 1.0), ("task=answer", 1.0), ("words", 4.0)];
        assert_eq!(features, expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(context.check().unwrap_err().to_string(), "feature \"odd\" is NaN, expected a finite number");
    }
}
