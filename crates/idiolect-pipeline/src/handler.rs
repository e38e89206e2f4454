//! The pipeline behind an axon.

use async_trait::async_trait;
use idiolect_axon::{AvailabilityMap, Call, Feedback, Handler, HandlerError, Reply};
use idiolect_backend::Health;

use crate::Pipeline;

/// Most names that one question about availability is answered for.
const MAX_NAMES: usize = 256;

#[async_trait]
impl Handler for Pipeline {
    async fn forward(&self, call: Call) -> Result<Reply, HandlerError> {
        Ok(self.run(call.into()).await?.reply)
    }

    async fn backward(&self, feedback: Feedback) -> Result<(), HandlerError> {
        self.reward(&feedback.caller.hotkey().to_string(), &feedback.completion, feedback.rewards)
    }

    async fn availability(&self, tasks: Vec<String>, models: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
        let is_ready = self.backend().health().await == Health::Ready;
        let served = &self.config().tasks;
        let model = &self.backend().capabilities().model;
        let answer = |names: Vec<String>, is_served: &dyn Fn(&String) -> bool| {
            let names = names.into_iter().take(MAX_NAMES);
            names.map(|name| (name.clone(), is_ready && is_served(&name))).collect::<AvailabilityMap>()
        };
        (answer(tasks, &|name| served.contains(name)), answer(models, &|name| name == model))
    }
}
