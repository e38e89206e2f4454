//! A miner with a backend of one's own: backend → pipeline → axon, with the public crates only.
//!
//! It serves on a free loopback port, asks itself one signed prompt over gRPC and one over HTTP, and ends.

mod sage;

use std::sync::Arc;

use anyhow::Context as _;
use idiolect_axon::policy::{Rules, StandardPolicy};
use idiolect_axon::{Axon, AxonConfig};
use idiolect_backend::HashEmbedder;
use idiolect_mutation::Library;
use idiolect_pipeline::{Parts, Pipeline, PipelineConfig};
use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
use idiolect_protocol::{Keypair, Limits, Message, NonceStore, Prompt, Role, SystemClock, Verifier};
use tokio::sync::oneshot;

use crate::sage::Sage;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    for line in serve_and_ask("How do I find good water?").await? {
        println!("{line}");
    }
    Ok(())
}

/// Serves the sage, asks her over two transports, and stops.
async fn serve_and_ask(question: &str) -> anyhow::Result<Vec<String>> {
    // The pipeline: our backend, and whatever else there is. HashEmbedder stands in for a sentence encoder.
    let parts = Parts {
        embedder: Some(Arc::new(HashEmbedder::default())),
        library: Arc::new(Library::built_in()),
        ..Parts::new(Arc::new(Sage::new()))
    };
    let pipeline = Arc::new(Pipeline::start(PipelineConfig::default(), parts).await?);

    // The axon: who we are, who may ask, and what answers.
    let key = Keypair::generate();
    let nonces = Arc::new(NonceStore::new(10_000));
    let verifier = Verifier::new(key.hotkey(), Limits::default(), Arc::new(SystemClock), nonces);
    let rules = Rules { allow_any: true, ..Rules::default() };
    let policy = Arc::new(StandardPolicy::new(key.hotkey(), rules, None));
    let config = AxonConfig { listen: "127.0.0.1:0".parse()?, ..AxonConfig::default() };
    let axon = Axon::bind(config, verifier, policy, pipeline.clone()).await?;
    let address = axon.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(axon.run(async {
        let _ = stopped.await;
    }));

    // A validator: another key, which asks for that miner's.
    let validator = Dendrite::new(Keypair::generate());
    let miner = Target::from((address, key.hotkey()));
    let prompt = Prompt::new(vec![Message::new(Role::User, question)])?;
    let mut lines = Vec::new();
    for via in [Via::Grpc, Via::Http] {
        let reply = validator.query(&miner, via, &prompt, &QueryOptions::default()).await?;
        let provenance = pipeline.explain("last").await?;
        let n_candidates = provenance.candidates.len();
        lines.push(format!("{via}: {} (best of {n_candidates}: {})", reply.text, provenance.reason));
    }

    drop(stop);
    serving.await.context("the axon broke off")??;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_sage_answers_over_both_transports() {
        let lines = serve_and_ask("How do I find good water?").await.expect("answers");
        assert_eq!(lines.len(), 2);
        assert!(
            lines.iter().all(|line| line.contains("So it is with water.") && line.contains("best of 4")),
            "{lines:?}"
        );
    }
}
