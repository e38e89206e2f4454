//! `/metrics` and `/healthz`.

use idiolect_protocol::dendrite::Via;
use serde_json::Value;

use crate::support::{Node, get};

#[tokio::test]
async fn figures_and_health_are_told_on_their_own_address() {
    let node = Node::start(&[("metrics.addr", "127.0.0.1:0")]).await;
    let address = node.miner.metrics_address().expect("a metrics server");
    node.ask(Via::Http, "Count this one.").await.expect("a reply");
    let (status, metrics) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    let described = idiolect_miner::metric_docs::described();
    let names: Vec<&str> =
        metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_whitespace().next()).collect();
    assert!(
        names.contains(&"idiolect_axon_requests_total") && names.contains(&"idiolect_pipeline_replies_total"),
        "{names:?}"
    );
    for name in names {
        assert!(described.iter().any(|doc| doc.name == name), "{name} is not described");
    }
    assert!(!metrics.contains("Count this one"));

    let (status, health) = get(address, "/healthz").await;
    let health: Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!((status, health["status"].as_str(), health["network"].as_str()), (200, Some("ok"), Some("none")));
    assert_eq!(health["backends"][0]["name"], "echo");
    assert_eq!(health["hotkey"], node.miner.hotkey().to_string());
    assert_eq!(get(address, "/").await.0, 404);
    // The axon itself shows neither.
    assert_ne!(get(node.miner.address(), "/metrics").await.0, 200);
    assert_ne!(get(node.miner.address(), "/healthz").await.0, 200);
    node.stop().await;
}
