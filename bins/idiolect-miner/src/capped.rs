//! A cap on the time of a reply, however long the client would wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use idiolect_axon::{AvailabilityMap, Call, Feedback, Handler, HandlerError, Reply};

/// A handler whose calls have at most so much time.
#[derive(Debug)]
pub(crate) struct Capped {
    inner: Arc<dyn Handler>,
    most: Duration,
}

impl Capped {
    pub(crate) fn new(inner: Arc<dyn Handler>, most: Duration) -> Self {
        Self { inner, most }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Handler for Capped {
    async fn forward(&self, mut call: Call) -> Result<Reply, HandlerError> {
        call.deadline = call.deadline.min(Instant::now() + self.most);
        self.inner.forward(call).await
    }

    async fn backward(&self, feedback: Feedback) -> Result<(), HandlerError> {
        self.inner.backward(feedback).await
    }

    async fn availability(&self, tasks: Vec<String>, models: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
        self.inner.availability(tasks, models).await
    }
}
