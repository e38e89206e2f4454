//! Whom a validator asks.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use idiolect_backend::{Backend, Message, Request, Sampling};
use idiolect_uniqueness::lexical::fnv1a;

/// What a miner did.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What it said; empty where it failed.
    pub text: String,
    /// 200, 408 where it took too long, 403 where it refused, 503 where nobody is there, and so on.
    pub status: u16,
    /// What it said to it.
    pub message: String,
    /// How long it took.
    pub time: Duration,
}

/// A miner that a [`TestValidator`](super::TestValidator) can ask.
#[async_trait]
pub trait Miner: Debug + Send + Sync + 'static {
    /// Returns what reports call it.
    fn name(&self) -> &str;

    /// Returns its address as logs have it: its hotkey, or its name where it has none.
    fn hotkey(&self) -> String {
        self.name().to_owned()
    }

    /// Asks it. What takes longer than `timeout` counts as failed, whatever comes.
    ///
    /// # Cancellation
    /// Dropping the future ends the request.
    async fn ask(&self, prompt: &str, timeout: Duration) -> Asked;
}

/// Says what it was asked: the least that a miner can do.
#[derive(Clone, Debug)]
pub struct EchoMiner {
    name: String,
}

impl EchoMiner {
    /// Makes one.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

#[async_trait]
impl Miner for EchoMiner {
    fn name(&self) -> &str {
        &self.name
    }

    async fn ask(&self, prompt: &str, _: Duration) -> Asked {
        Asked { text: prompt.to_owned(), status: 200, message: "Success".to_owned(), time: Duration::ZERO }
    }
}

/// A backend behind a system prompt: a stock miner, without a network between.
#[derive(Clone, Debug)]
pub struct PanelMiner {
    name: String,
    backend: Arc<dyn Backend>,
    system: String,
    sampling: Sampling,
    seed: u64,
}

impl PanelMiner {
    /// Makes one. Draws start from `seed` and the prompt.
    pub fn new(
        name: impl Into<String>,
        backend: Arc<dyn Backend>,
        system: impl Into<String>,
        sampling: Sampling,
        seed: u64,
    ) -> Self {
        Self { name: name.into(), backend, system: system.into(), sampling, seed }
    }
}

#[async_trait]
impl Miner for PanelMiner {
    fn name(&self) -> &str {
        &self.name
    }

    async fn ask(&self, prompt: &str, timeout: Duration) -> Asked {
        let began = Instant::now();
        let seed = fnv1a(prompt.bytes()).wrapping_add(self.seed);
        let messages = vec![Message::system(self.system.as_str()), Message::user(prompt)];
        let sampling = Sampling { seed: Some(seed), ..self.sampling.clone() };
        // An engine stops by itself a little earlier and gives what it has.
        let deadline = began + timeout.mul_f64(0.9);
        let request = Request { sampling, deadline: Some(deadline), ..Request::new(messages) };
        let answer = self.backend.complete(request).await;
        let time = began.elapsed();
        match answer.map(|completion| completion.candidates.into_iter().next()) {
            Ok(Some(candidate)) => Asked { text: candidate.text, status: 200, message: "Success".to_owned(), time },
            Ok(None) => Asked { text: String::new(), status: 500, message: "no candidate".to_owned(), time },
            Err(error) => Asked { text: String::new(), status: 500, message: error.to_string(), time },
        }
    }
}
