//! One backend of a pool.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::{Backend, ErrorKind};

/// One backend of a [`Pool`](crate::Pool), with its share and limits.
#[derive(Clone, Debug)]
pub struct Member {
    pub(super) name: String,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) weight: u32,
    pub(super) models: Vec<String>,
    pub(super) max_parallel_requests: Option<usize>,
    pub(super) rpm: Option<NonZeroU32>,
}

impl Member {
    /// Makes a member of weight 1 without limits. Its name is what answers give as their backend.
    pub fn new(name: impl Into<String>, backend: Arc<dyn Backend>) -> Self {
        Self { name: name.into(), backend, weight: 1, models: Vec::new(), max_parallel_requests: None, rpm: None }
    }

    /// Sets its share of the requests relative to the other members; at least 1.
    #[must_use]
    pub const fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the names in [`Request::model`](crate::Request::model) that it answers to. A member that is given none
    /// answers to its backend's own model name, and to names that no other member was given.
    #[must_use]
    pub fn models<S: Into<String>>(mut self, models: impl IntoIterator<Item = S>) -> Self {
        self.models = models.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how many requests it may have at the same time.
    #[must_use]
    pub const fn max_parallel_requests(mut self, max: usize) -> Self {
        self.max_parallel_requests = Some(max);
        self
    }

    /// Sets how many requests it may get in any sixty seconds; 0 is no limit.
    #[must_use]
    pub const fn rpm(mut self, rpm: u32) -> Self {
        self.rpm = NonZeroU32::new(rpm);
        self
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        if self.models.is_empty() {
            self.backend.capabilities().model == model
        } else {
            self.models.iter().any(|name| name == model)
        }
    }
}

/// How a member of a [`Pool`](crate::Pool) is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberSnapshot {
    /// Its name in the pool.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Requests it is working on.
    pub in_flight: usize,
    /// Requests it was given, ever.
    pub requests_total: u64,
    /// How many of them failed and counted against it.
    pub failures_total: u64,
    /// Failures since its last success.
    pub consecutive_failures: u32,
    /// How long it is left alone; `None` when it isn't.
    pub cooldown: Option<Duration>,
    /// Its last failure.
    pub last_error: Option<ErrorKind>,
}
