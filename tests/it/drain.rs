//! Stopping while replies are in the making.

use std::time::Duration;

use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Via};

use crate::support::{FakeOpenAi, Node, config, prompt};

#[tokio::test]
async fn a_running_reply_is_finished_and_a_newcomer_refused() {
    let server = FakeOpenAi::start(Duration::from_millis(700)).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[("backend", "openai"), ("model", "fake")]);
    settings.backends[0].base_url = Some(server.url.clone());
    let node = Node::with(dir, &settings).await;
    let (validator, target): (Dendrite, _) = (node.validator.clone(), node.target());
    let asked = tokio::spawn({
        let target = target.clone();
        async move { validator.query(&target, Via::Http, &prompt("Take your time."), &QueryOptions::default()).await }
    });
    while server.n_asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let validator = node.validator.clone();
    node.stop().await;
    let reply = asked.await.expect("no panic").expect("the reply that was in the making");
    assert!(reply.text.contains("far server"), "{}", reply.text);
    assert!(validator.query(&target, Via::Http, &prompt("Too late?"), &QueryOptions::default()).await.is_err());
}
