//! Asking a miner from Rust: `query-miner HOST:PORT HOTKEY "PROMPT" [grpc|http|stream|epistula|btauth]`.

use anyhow::{Context as _, bail};
use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
use idiolect_protocol::{Keypair, Message, Prompt, Role};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, hotkey, prompt, via @ ..] = args.as_slice() else {
        bail!("usage: query-miner HOST:PORT HOTKEY PROMPT [grpc|http|stream|epistula|btauth]");
    };
    let via = via.first().map_or(Ok(Via::Http), |via| via.parse())?;
    println!("{}", ask(address, hotkey, prompt, via).await?);
    Ok(())
}

/// Signs a prompt with a new key, sends it and returns the completion.
async fn ask(address: &str, hotkey: &str, prompt: &str, via: Via) -> anyhow::Result<String> {
    // A validator would load its own: idiolect_protocol::wallet::load_hotkey(path).
    let dendrite = Dendrite::new(Keypair::generate());
    let miner = Target::new(address, hotkey.parse().context("the miner's hotkey")?)?;
    let prompt = Prompt::new(vec![Message::new(Role::User, prompt)])?;
    let reply = dendrite.query(&miner, via, &prompt, &QueryOptions::default()).await?;
    Ok(reply.text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use idiolect_axon::policy::{Rules, StandardPolicy};
    use idiolect_axon::{Axon, AxonConfig};
    use idiolect_backend::Echo;
    use idiolect_pipeline::{Parts, Pipeline, PipelineConfig};
    use idiolect_protocol::{Limits, NonceStore, SystemClock, Verifier};

    use super::*;

    #[tokio::test]
    async fn a_miner_is_asked_in_every_way() {
        let key = Keypair::generate();
        let pipeline =
            Pipeline::start(PipelineConfig::default(), Parts::new(Arc::new(Echo::new()))).await.expect("a pipeline");
        let verifier =
            Verifier::new(key.hotkey(), Limits::default(), Arc::new(SystemClock), Arc::new(NonceStore::new(100)));
        let rules = Rules { allow_any: true, ..Rules::default() };
        let policy = Arc::new(StandardPolicy::new(key.hotkey(), rules, None));
        let config = AxonConfig { listen: ([127, 0, 0, 1], 0).into(), ..AxonConfig::default() };
        let axon = Axon::bind(config, verifier, policy, Arc::new(pipeline)).await.expect("an axon");
        let address = axon.local_addr().to_string();
        let serving = tokio::spawn(axon.run(std::future::pending()));
        for via in Via::ALL {
            let text = ask(&address, &key.hotkey().to_string(), "say these words again", via).await.expect("a reply");
            assert!(text.contains("words"), "{via}: {text}");
        }
        serving.abort();
    }
}
