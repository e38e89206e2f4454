//! What is kept of a reply, and what becomes of it.

use std::time::Duration;

use idiolect_pipeline::{PipelineError, ProvenanceStore};
use idiolect_protocol::dendrite::Via;
use idiolect_uniqueness::Erase;

use crate::support::{Node, prompt};

const QUESTION: &str = "What is written on the moon?";

#[tokio::test]
async fn a_reply_is_explained_after_the_miner_has_stopped() {
    let node = Node::start(&[]).await;
    let reply = node.ask(Via::Http, QUESTION).await.expect("a reply");
    let validator = node.validator.hotkey().to_string();
    let dir = node.stop().await;

    let pool = idiolect_miner::app::open_store(dir.path()).await.expect("a store");
    let store = ProvenanceStore::open(pool.clone()).await.expect("records");
    let found = store.explain("last").await.expect("a record");
    assert_eq!(found.caller, Some(validator.clone()));
    assert_eq!((found.transport.as_str(), found.synapse.as_str()), ("http", "Prompting"));
    assert_eq!(found.chosen().and_then(|c| c.text.clone()), Some(reply.text));
    assert_eq!(found.prompt.as_ref().and_then(|p| p.first()).map(|m| m.content.as_str()), Some(QUESTION));
    assert_eq!(store.explain(&found.id[..12]).await.expect("by the beginning of its id").id, found.id);
    assert_eq!(store.list(5).await.expect("a list").len(), 1);

    assert_eq!(store.erase(&Erase::Caller(validator)).await.expect("erased"), 1);
    assert!(matches!(store.explain("last").await, Err(PipelineError::NotFound(_))));
    pool.close().await;
    let on_disk = std::fs::read(idiolect_miner::app::store_path(dir.path())).expect("the file");
    assert!(!on_disk.windows(QUESTION.len()).any(|w| w == QUESTION.as_bytes()), "the prompt is still on disk");
}

#[tokio::test]
async fn rewards_are_kept_beside_the_reply() {
    let node = Node::start(&[]).await;
    let reply = node.ask(Via::Grpc, QUESTION).await.expect("a reply");
    node.validator
        .backward(&node.target(), &prompt(QUESTION), &reply.text, &[0.75], Duration::from_secs(5))
        .await
        .expect("taken");
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert_eq!(found.rewards, [0.75]);
    node.stop().await;
}

#[tokio::test]
async fn prompts_are_not_kept_where_the_operator_says_so() {
    let node = Node::start(&[("pipeline.store_prompts", "none"), ("pipeline.store_replies", "false")]).await;
    let reply = node.ask(Via::Http, QUESTION).await.expect("a reply");
    let dir = node.stop().await;
    let pool = idiolect_miner::app::open_store(dir.path()).await.expect("a store");
    let found = ProvenanceStore::open(pool.clone()).await.expect("records").explain("last").await.expect("a record");
    assert_eq!((found.prompt, found.prompt_hash), (None, None));
    assert!(found.candidates.iter().all(|c| c.text.is_none()));
    pool.close().await;
    let on_disk = std::fs::read(idiolect_miner::app::store_path(dir.path())).expect("the file");
    for text in [QUESTION, reply.text.as_str()] {
        assert!(!on_disk.windows(text.len()).any(|w| w == text.as_bytes()), "{text:?} is on disk");
    }
}
