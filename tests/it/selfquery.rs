//! The miner asks itself over real sockets.

use idiolect_miner::selfquery::ask_self;
use idiolect_protocol::dendrite::Via;

use crate::support::{Node, config};

#[tokio::test]
async fn both_transports_answer_with_their_provenance() {
    let node = Node::start(&[]).await;
    let config = config(node.dir.path(), &[]);
    let answers = ask_self(&node.miner, &config.transports).await.expect("a prompt");
    let via: Vec<Via> = answers.iter().map(|a| a.via).collect();
    assert_eq!(via, [Via::Grpc, Via::Http]);
    for answer in &answers {
        let reply = answer.reply.as_ref().expect("a reply");
        let provenance = answer.provenance.as_ref().expect("a record");
        let chosen = provenance.chosen().expect("a choice");
        assert_eq!(chosen.text.as_deref(), Some(reply.text.as_str()));
        assert_eq!(provenance.candidates.len(), 4);
        let shown = answer.to_string();
        assert!(shown.contains("200 Success") && shown.contains("candidate 3") && shown.contains("<- sent"), "{shown}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_transport_that_is_off_is_not_asked_and_refuses_others() {
    let off = [("transports.grpc", "false")];
    let node = Node::start(&off).await;
    let config = config(node.dir.path(), &off);
    let answers = ask_self(&node.miner, &config.transports).await.expect("a prompt");
    assert_eq!(answers.iter().map(|a| a.via).collect::<Vec<_>>(), [Via::Http]);
    assert!(node.ask(Via::Grpc, "Is anybody there?").await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn every_transport_switch_works() {
    for (key, via) in
        [("transports.http", Via::Http), ("transports.epistula", Via::Epistula), ("transports.btauth", Via::Btauth)]
    {
        let node = Node::start(&[(key, "false")]).await;
        for other in [Via::Grpc, Via::Http, Via::Epistula, Via::Btauth] {
            let answered = node.ask(other, "Is anybody there?").await;
            assert_eq!(answered.is_ok(), other != via, "{key} off, asked over {other}: {answered:?}");
        }
        node.stop().await;
    }
}
