//! What survives a restart.

use idiolect_protocol::dendrite::Via;

use crate::support::{Node, config, send_raw, signed};

#[tokio::test]
async fn a_captured_request_is_refused_again_and_after_a_restart() {
    let node = Node::start(&[]).await;
    let captured = signed(&node, Via::Http, "Say this only once.");
    assert_eq!(send_raw(node.miner.address(), &captured).await.0, 200);
    assert_eq!(send_raw(node.miner.address(), &captured).await.0, 401, "the same request a second time");
    let hotkey = node.miner.hotkey();
    let validator = node.validator.clone();
    let dir = node.stop().await;

    let settings = config(dir.path(), &[]);
    let mut node = Node::with(dir, &settings).await;
    node.validator = validator;
    assert_eq!(node.miner.hotkey(), hotkey, "the key is made once");
    assert_eq!(send_raw(node.miner.address(), &captured).await.0, 401, "the same request after a restart");
    node.ask(Via::Http, "And now another one.").await.expect("new requests are answered");
    node.stop().await;
}

#[tokio::test]
async fn earlier_replies_are_compared_with_after_a_restart() {
    let given = [
        ("backend", "candle"),
        ("uniqueness.encoder", "minilm"),
        ("candidates.count", "2"),
        ("sampling.max_tokens", "12"),
    ];
    let node = Node::start(&given).await;
    node.ask(Via::Http, "Name a colour.").await.expect("a reply");
    let dir = node.stop().await;
    let settings = config(dir.path(), &given);
    let node = Node::with(dir, &settings).await;
    node.ask(Via::Http, "Name a fruit.").await.expect("a reply");
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert_eq!(found.n_history, 1, "{found}");
    node.stop().await;
}
