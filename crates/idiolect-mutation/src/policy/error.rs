//! What can go wrong with a policy.

use std::io;
use std::path::PathBuf;

/// Why a policy cannot be made, or did not learn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Settings that cannot work; each line names one.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// A reward outside of 0 to 1. Nothing was learnt of the request.
    #[error("reward of {recipe} is {reward}, expected 0 to 1")]
    Reward {
        /// The recipe's name.
        recipe: String,
        /// What was given.
        reward: f64,
    },
    /// A propensity that no draw can have. Nothing was learnt of the request.
    #[error("propensity of {recipe} is {propensity}, expected above 0 and at most 1")]
    Propensity {
        /// The recipe's name.
        recipe: String,
        /// What was given.
        propensity: f64,
    },
    /// A feature that is no number. Nothing was learnt of the request.
    #[error("feature {name:?} is {value}, expected a finite number")]
    Feature {
        /// Its name.
        name: String,
        /// What was given.
        value: f64,
    },
    /// A file cannot be read or written. What was to be written is not learnt either, so that memory and file agree.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds what no miner wrote.
    #[error("{path} is damaged: {problem}; {remedy}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
        /// What can be done.
        remedy: String,
    },
    /// Another process learns into the same files.
    #[error("{path} is in use by another process, expected one miner for each folder of learnt state")]
    InUse {
        /// The file.
        path: PathBuf,
    },
}
