//! Several backends behind one miner.

use std::time::Duration;

use idiolect_miner::config::{BackendConfig, BackendKind};
use idiolect_protocol::dendrite::Via;

use crate::support::{FakeOpenAi, Node, config};

fn remote(name: &str, url: &str) -> BackendConfig {
    BackendConfig {
        name: name.to_owned(),
        model: Some("fake".to_owned()),
        base_url: Some(url.to_owned()),
        max_retries: 0,
        ..BackendConfig::of_kind(BackendKind::OpenAi)
    }
}

#[tokio::test]
async fn another_backend_steps_in_for_a_dead_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[]);
    settings.backends.insert(0, remote("dead", "http://127.0.0.1:9/v1"));
    let node = Node::with(dir, &settings).await;
    let reply = node.ask(Via::Grpc, "Is there another one?").await.expect("a reply");
    assert!(reply.text.contains("another"), "{}", reply.text);
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert_eq!(found.chosen().map(|c| c.backend.as_str()), Some("echo"));
    node.stop().await;
}

#[tokio::test]
async fn a_server_answers_and_its_spending_ends_at_the_cap() {
    let server = FakeOpenAi::start(Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings =
        config(dir.path(), &[("candidates.count", "1"), ("mutation.enabled", "false"), ("sampling.max_tokens", "100")]);
    // Worst case of a question: 100 tokens at 10 dollars a million are 0.001 dollars, and the prompt.
    settings.backends = vec![BackendConfig {
        prompt_price: 0.01,
        completion_price: 10.0,
        spending_cap: Some(0.0015),
        ..remote("paid", &server.url)
    }];
    let node = Node::with(dir, &settings).await;
    let reply = node.ask(Via::Http, "What does it cost?").await.expect("a reply");
    assert!(reply.text.contains("far server"), "{}", reply.text);
    let mut n_answered = 1;
    while node.ask(Via::Http, "And again?").await.is_ok() {
        n_answered += 1;
        assert!(n_answered < 20, "the cap never came");
    }
    assert_eq!(server.n_asked(), n_answered, "a refused question costs nothing");
    node.stop().await;
}

#[tokio::test]
async fn with_no_backend_there_is_an_error_and_no_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[]);
    settings.backends = vec![remote("dead", "http://127.0.0.1:9/v1")];
    let node = Node::with(dir, &settings).await;
    for via in [Via::Grpc, Via::Http, Via::Stream, Via::Epistula, Via::Btauth] {
        let error = node.ask(via, "Is anybody there?").await.expect_err("nobody is");
        assert!(error.status_code().as_u16() >= 500, "{via}: {error}");
    }
    node.stop().await;
}
