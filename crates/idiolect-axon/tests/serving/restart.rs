//! A captured request does not work again after a restart, whatever its transport.

use std::sync::Arc;

use idiolect_axon::nonces::NoncePersister;
use idiolect_protocol::SystemClock;
use idiolect_protocol::pb::ForwardTextPromptingRequest;
use prost::Message as _;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

use crate::support::{Served, Setup, SynapseRequest, alice, bob, grpc, grpc_metadata};

struct Miner {
    served: Served,
    persister: NoncePersister,
}

async fn start(folder: &std::path::Path) -> Miner {
    let options = SqliteConnectOptions::new().filename(folder.join("idiolect.sqlite")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let (nonces, persister) = NoncePersister::open(pool, &alice().hotkey(), 1000, Arc::new(SystemClock)).await.unwrap();
    Miner { served: Setup { nonces, ..Setup::default() }.serve().await, persister }
}

fn forward() -> Vec<u8> {
    let messages = vec![r#"{"role": "user", "content": "hi"}"#.to_owned()];
    ForwardTextPromptingRequest { messages, timeout: 12.0, ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn captured_requests_are_refused_after_a_restart_clean_or_not() {
    for is_clean in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let miner = start(folder.path()).await;
        let metadata = grpc_metadata(&bob(), &alice().hotkey());
        let captured = SynapseRequest::prompt("Prompting", &["hi"]);
        assert_eq!(grpc(miner.served.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 0);
        assert_eq!(captured.send(&miner.served).await.status, 200);
        let Miner { served, persister } = miner;
        if is_clean {
            served.stopped().await;
            persister.run(std::future::ready(())).await.unwrap();
        } else {
            // Killed after the counters were saved, before the last batch was.
            persister.save().await.unwrap();
            let lost = SynapseRequest::prompt("Prompting", &["lost"]);
            assert_eq!(lost.send(&served).await.status, 200);
            drop((served, persister));
            let miner = start(folder.path()).await;
            assert_eq!(lost.send(&miner.served).await.status, 401);
        }

        let miner = start(folder.path()).await;
        let again = grpc(miner.served.address, "/TextPrompting/Forward", &metadata, &forward()).await;
        assert_eq!((again.status, again.details.as_str()), (16, "Nonce is too small"));
        assert_eq!(captured.send(&miner.served).await.status, 401);
        assert_eq!(SynapseRequest::prompt("Prompting", &["new"]).send(&miner.served).await.status, 200);
    }
}
