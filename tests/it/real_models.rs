//! The default model and encoder, through the same resolver that operators use.

use std::time::Duration;

use idiolect_miner::app::Miner;
use idiolect_miner::selfquery::ask_self;
use idiolect_models::NoProgress;
use idiolect_protocol::dendrite::{QueryOptions, Via};

use crate::support::{Node, config, env, get, prompt};

const REAL: [(&str, &str); 4] =
    [("backend", "candle"), ("uniqueness.encoder", "minilm"), ("sampling.max_tokens", "24"), ("candidates.count", "3")];

#[tokio::test]
async fn the_default_model_answers_itself_with_scored_candidates() {
    let node = Node::start(&REAL).await;
    let config = config(node.dir.path(), &REAL);
    for answer in ask_self(&node.miner, &config.transports).await.expect("a prompt") {
        let reply = answer.reply.expect("a reply");
        assert!(reply.text.split_whitespace().count() >= 3, "{}", reply.text);
        let provenance = answer.provenance.expect("a record");
        assert_eq!(provenance.encoder.as_deref(), Some("all-MiniLM-L6-v2"), "{provenance}");
        assert!(provenance.candidates.iter().all(|c| c.score.is_some() && c.mean_logprob.is_some()), "{provenance}");
        assert_eq!(provenance.chosen().map(|c| c.model.as_str()), Some("smollm2-135m"));
        assert_eq!(provenance.reward_model.as_deref(), Some("dpo"), "{provenance}");
        for candidate in &provenance.candidates {
            let reward = candidate.quality.reward.expect("a reward");
            assert!(reward.raw.is_some_and(|raw| (-11.0..0.0).contains(&raw)), "{provenance}");
            assert_eq!(candidate.quality.likelihood, reward.normalised);
        }
    }
    node.stop().await;
}

/// What the model that answers thinks of its own words is no measure: here it is another, which only repeats.
#[tokio::test]
async fn candidates_of_any_backend_are_judged_by_the_default_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = dir.path().join("missing.gguf");
    for (quality_model, is_judged) in [("smollm2-135m", true), ("auto", false), ("off", false)] {
        let node = Node::start(&[
            ("backend", "echo"),
            ("uniqueness.encoder", "minilm"),
            ("uniqueness.quality_model", quality_model),
            ("candidates.count", "4"),
            ("mutation.recipes", "2"),
            ("metrics.addr", "127.0.0.1:0"),
        ])
        .await;
        node.ask(Via::Http, "Why is the sky blue in the morning?").await.expect("a reply");
        node.miner.pipeline().flush().await;
        let found = node.miner.pipeline().explain("last").await.expect("a record");
        assert_eq!(found.reward_model.as_deref(), is_judged.then_some("dpo"), "{found}");
        let (_, health) = get(node.miner.metrics_address().expect("an address"), "/healthz").await;
        let health: serde_json::Value = serde_json::from_str(&health).expect("JSON");
        assert_eq!(health["quality_model"].as_str(), is_judged.then_some(quality_model), "{health}");
        node.stop().await;
    }
    let path = missing.display().to_string();
    let config = config(dir.path(), &[("backend", "echo"), ("uniqueness.quality_model", path.as_str())]);
    let error = Miner::start(&config, &env(), &NoProgress).await.expect_err("there is no such model");
    let error = format!("{error:#}");
    assert!(error.contains("uniqueness.quality_model") && error.contains(&path), "{error}");
}

#[tokio::test]
async fn a_dictated_seed_gives_the_same_text_with_its_log_probabilities() {
    let node = Node::start(&REAL).await;
    let sampling = serde_json::json!({ "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 16 });
    let options = QueryOptions {
        seed: Some(42),
        task: Some("InferenceTask".to_owned()),
        sampling_parameters: sampling.as_object().cloned(),
        logprobs: Some(2),
        ..QueryOptions::default()
    };
    let question = prompt("Name three rivers.");
    let first = node.ask_with(Via::Epistula, &question, &options).await.expect("a reply");
    let second = node.ask_with(Via::Epistula, &question, &options).await.expect("a reply");
    assert_eq!(first.text, second.text);
    assert!(!first.logprobs.is_empty());
    let joined: String = first.logprobs.iter().map(|t| t.token.as_str()).collect();
    assert_eq!(joined, first.text, "the log-probabilities are of the very text that was sent");
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert_eq!((found.mode.as_str(), found.candidates.len()), ("passthrough", 1));
    node.stop().await;
}

/// All of the miner but the engine shares this test's one thread: a model that computed on it would let nobody in.
#[tokio::test]
async fn a_model_that_computes_does_not_keep_the_miner_from_answering_others() {
    let node = Node::start(&[
        ("backend", "candle"),
        ("uniqueness.encoder", "off"),
        ("sampling.max_tokens", "200"),
        ("candidates.count", "4"),
        ("metrics.addr", "127.0.0.1:0"),
    ])
    .await;
    let metrics = node.miner.metrics_address().expect("an address for metrics");
    let mut n_answered = 0;
    let reply = {
        let mut asking = std::pin::pin!(node.ask(Via::Grpc, "Tell me a long story about a river and the sea."));
        loop {
            tokio::select! {
                biased;
                reply = &mut asking => break reply,
                (status, _) = get(metrics, "/healthz") => {
                    assert_eq!(status, 200);
                    node.validator.ping(&node.target(), Duration::from_secs(30)).await.expect("the axon answers");
                    n_answered += 1;
                }
            }
        }
    };
    reply.expect("a reply");
    assert!(n_answered >= 3, "{n_answered} answers while the model computed");
    node.stop().await;
}
