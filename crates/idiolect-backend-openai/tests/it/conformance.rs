use std::sync::Arc;
use std::time::Duration;

use idiolect_backend::testkit::{Conformance, embedder_conformance};
use idiolect_backend_openai::{Candidates, Flavour, OpenAiBackend, OpenAiConfig, OpenAiEmbedder, OpenAiEmbedderConfig};

use crate::server::Loopback;

async fn check(ignores_n: bool, flavour: Flavour, change: fn(&mut OpenAiConfig)) {
    let server = Loopback::with([], Duration::from_millis(2), ignores_n).await;
    let mut config = server.config(flavour);
    config.seed = true;
    change(&mut config);
    let make = move || Arc::new(OpenAiBackend::new(config.clone()).expect("a backend")) as _;
    let watched = server.clone();
    // The machine may be busy with other tests.
    let suite = Conformance::new(make).in_flight(move || watched.active()).slack(Duration::from_secs(5));
    suite.run().await;
}

#[tokio::test]
async fn candidates_at_once() {
    check(false, Flavour::OpenAi, |_| {}).await;
}

#[tokio::test]
async fn candidates_one_by_one() {
    check(false, Flavour::Ollama, |config| config.logprobs = Some(true)).await;
}

#[tokio::test]
async fn a_server_that_ignores_n() {
    check(true, Flavour::LlamaCpp, |_| {}).await;
    check(true, Flavour::Tgi, |config| config.candidates = Candidates::Auto).await;
}

#[tokio::test]
async fn a_server_that_scores() {
    check(false, Flavour::Vllm, |_| {}).await;
}

#[tokio::test]
async fn embeddings() {
    let server = Loopback::start([]).await;
    let mut config = OpenAiEmbedderConfig::new("hash", 32);
    config.server = server.server_config();
    config.batch_size = 2;
    config.flavour = Flavour::Vllm; // cut by the server
    embedder_conformance(&OpenAiEmbedder::new(config.clone()).expect("an encoder")).await;

    config.flavour = Flavour::OpenAi; // cut here
    config.max_tokens = 8;
    embedder_conformance(&OpenAiEmbedder::new(config).expect("an encoder")).await;
}
