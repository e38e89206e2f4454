//! The default model and encoder, through the same resolver that operators use.

use idiolect_miner::selfquery::ask_self;
use idiolect_protocol::dendrite::{QueryOptions, Via};

use crate::support::{Node, config, prompt};

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
