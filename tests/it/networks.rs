//! Who is let in, with and without a network.

use std::path::Path;

use idiolect_miner::app::Miner;
use idiolect_models::NoProgress;
use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Via};
use idiolect_protocol::{Hotkey, Keypair};
use serde_json::json;

use crate::support::{Node, config, env, prompt};

fn snapshot(path: &Path, netuid: u16, validators: &[Hotkey]) {
    let taken_at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let neurons = validators.iter().enumerate().map(|(uid, hotkey)| {
        json!({
            "uid": uid, "hotkey": hotkey, "coldkey": null, "stake_rao": 5_000_000_000_000_u64, "alpha_stake": 0, "tao_stake": 0,
            "validator_permit": true, "incentive_u16": 0, "emission_rao": 0, "last_update": 1, "axon": null,
        })
    });
    let snapshot = json!({
        "schema_version": 1, "network": "local", "genesis_hash": format!("0x{}", "00".repeat(32)), "netuid": netuid, "block": 1,
        "taken_at": taken_at, "neurons": neurons.collect::<Vec<_>>(),
    });
    std::fs::write(path, snapshot.to_string()).expect("written");
}

#[tokio::test]
async fn without_a_network_only_listed_hotkeys_are_answered() {
    let friend = Keypair::from_uri("//Friend").expect("a key");
    let node = Node::start(&[("policy.allow", &friend.hotkey().to_string())]).await;
    node.ask(Via::Http, "May a stranger ask?").await.expect_err("no");
    let friend = Dendrite::new(friend);
    for via in Via::ALL {
        friend.query(&node.target(), via, &prompt("May a friend ask?"), &QueryOptions::default()).await.expect("yes");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_lets_its_validators_in() {
    let dir = tempfile::tempdir().expect("a folder");
    let validator = Keypair::from_uri("//Validator").expect("a key");
    let path = dir.path().join("metagraph.json");
    snapshot(&path, 11, &[validator.hotkey()]);
    let network = format!("file:{}", path.display());
    let given =
        [("network", network.as_str()), ("wallet.hotkey_uri", "//Miner"), ("policy.allow", ""), ("netuid", "11")];
    let settings = config(dir.path(), &given);
    let node = Node::with(dir, &settings).await;
    assert_eq!(node.miner.hotkey(), Keypair::from_uri("//Miner").expect("a key").hotkey());
    node.ask(Via::Grpc, "May a stranger ask?").await.expect_err("no");
    let validator = Dendrite::new(validator);
    validator
        .query(&node.target(), Via::Grpc, &prompt("May a validator?"), &QueryOptions::default())
        .await
        .expect("yes");
    node.stop().await;
}

#[tokio::test]
async fn a_wrong_or_missing_snapshot_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("metagraph.json");
    let network = format!("file:{}", path.display());
    let given = [("network", network.as_str()), ("wallet.hotkey_uri", "//Miner"), ("netuid", "1")];
    let settings = config(dir.path(), &given);
    let start = || async { format!("{:#}", Miner::start(&settings, &env(), &NoProgress).await.expect_err("no start")) };
    assert!(start().await.contains("metagraph.json"));
    snapshot(&path, 11, &[]);
    assert!(start().await.contains("netuid is 1, but the metagraph snapshot is of subnet 11"));
    std::fs::write(&path, "{\"netuid\": 1.5}").expect("written");
    assert!(start().await.contains("metagraph.json"));
}
