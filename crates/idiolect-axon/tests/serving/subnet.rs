//! Policy by the metagraph, over sockets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idiolect_axon::metagraph::{Metagraph, MetagraphFile, Neuron, StageAges};
use idiolect_axon::policy::{Rules, StandardPolicy};
use idiolect_protocol::body_hash::body_hash;
use idiolect_protocol::{Keypair, SystemClock};
use serde_json::json;

use crate::support::{Served, Setup, SynapseRequest, alice, now_ns, until};

fn keypair(name: &str) -> Keypair {
    Keypair::from_uri(&format!("//{name}")).unwrap()
}

fn neuron(uid: u16, name: &str, stake_rao: u64) -> Neuron {
    Neuron {
        uid,
        hotkey: keypair(name).hotkey(),
        coldkey: None,
        stake_rao,
        alpha_stake: stake_rao,
        tao_stake: 0,
        validator_permit: true,
        incentive_u16: 0,
        emission_rao: 0,
        last_update: 0,
        axon: None,
    }
}

fn save(path: &Path, neurons: Vec<Neuron>) {
    let snapshot = Metagraph {
        schema_version: 1,
        network: "local".to_owned(),
        genesis_hash: format!("0x{}", "00".repeat(32)),
        netuid: 1,
        block: 7,
        taken_at: i64::try_from(now_ns() / 1_000_000_000).unwrap(),
        neurons,
    };
    snapshot.save(path).unwrap();
}

async fn serve(path: &Path, mut setup: Setup) -> (Served, tokio::task::JoinHandle<()>) {
    let file = MetagraphFile::open(path, StageAges::default(), Arc::new(SystemClock)).unwrap();
    let view = Arc::new(file.view());
    let rules = Rules { require_validator_permit: true, min_stake_rao: 10, ..Rules::default() };
    setup.policy = Arc::new(StandardPolicy::new(alice().hotkey(), rules, Some(view)));
    let watching = tokio::spawn(file.watch(Duration::from_millis(20)));
    (setup.serve().await, watching)
}

fn asks(name: &str, content: &str) -> SynapseRequest {
    let body = json!({"roles": ["user"], "messages": [content]});
    SynapseRequest::signed(&keypair(name), "Prompting", &body, &body_hash(&[[content.to_owned()].as_slice()]))
}

#[tokio::test]
async fn validators_of_the_subnet_are_answered_and_the_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metagraph.json");
    save(&path, vec![neuron(0, "Rich", 1_000), neuron(1, "Poor", 1)]);
    let (served, watching) = serve(&path, Setup::default()).await;
    let status = async |name: &str| asks(name, "hi").send(&served).await;
    assert_eq!(status("Rich").await.status, 200);
    let poor = status("Poor").await;
    assert_eq!(
        (poor.status, poor.json()["message"].as_str()),
        (403, Some("Forbidden. Key is blacklisted: stake below the minimum."))
    );
    let nobody = status("Nobody").await;
    assert_eq!(
        (nobody.status, nobody.json()["message"].as_str()),
        (403, Some("Forbidden. Key is blacklisted: hotkey not registered."))
    );

    save(&path, vec![neuron(1, "Poor", 1_000_000)]);
    for _ in 0..200 {
        if status("Poor").await.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(status("Poor").await.status, 200);
    assert_eq!(status("Rich").await.status, 403);
    watching.abort();
}

#[tokio::test]
async fn more_stake_is_answered_first_when_the_handler_is_busy() {
    // In reference servers of the HTTP era the priority had no effect on the order.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metagraph.json");
    save(&path, vec![neuron(0, "Rich", 1_000), neuron(1, "Poor", 100)]);
    let (served, watching) = serve(&path, Setup::config(|config| config.concurrency = 1)).await;
    let served = Arc::new(served);
    let start = |name: &'static str, content: &'static str| {
        let (served, asked) = (served.clone(), asks(name, content));
        tokio::spawn(async move { asked.send(&served).await.status })
    };
    let first = start("Poor", "wait 600");
    until("the first call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    let poor = start("Poor", "poor");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let rich = start("Rich", "rich");
    for call in [first, poor, rich] {
        assert_eq!(call.await.unwrap(), 200);
    }
    let calls = served.echo.calls.lock().unwrap();
    let order: Vec<_> = calls.iter().map(|call| call.prompt.messages()[0].content.clone()).collect();
    assert_eq!(order, ["wait 600", "rich", "poor"]);
    watching.abort();
}
