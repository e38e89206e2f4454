//! The default model and encoder, through the same resolver that operators use.

use std::time::Duration;

use idiolect_miner::selfquery::ask_self;
use idiolect_protocol::dendrite::{QueryOptions, Via};

use crate::support::{Node, config, get, prompt};

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
    }
    node.stop().await;
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
