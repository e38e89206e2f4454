//! What one HTTP request costs before anybody answers it, step by step, and the share of the signature check.
//!
//!     cargo bench -p idiolect-protocol
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use idiolect_protocol::body_hash::body_hash;
use idiolect_protocol::http_synapse::{SynapseBody, SynapseReplier, SynapseSpec, Synapses, read_head};
use idiolect_protocol::{Clock, Keypair, Limits, NonceStore, SystemClock, Verifier};

const SESSION: &str = "fea3e5be-e64d-11f1-8d31-02fc00000001";

/// Signed requests as bittensor 10.5 sends them.
struct Client {
    validator: Keypair,
    miner: Keypair,
    hash: String,
    nonce: i128,
}

impl Client {
    fn request(&mut self) -> HeaderMap {
        self.nonce += 1_000;
        let Self { validator, miner, hash, nonce } = self;
        let signed = format!("{nonce}.{}.{}.{SESSION}.{hash}", validator.hotkey(), miner.hotkey());
        let signature = format!("0x{}", hex::encode(validator.sign(signed.as_bytes())));
        [
            ("bt_header_dendrite_nonce", nonce.to_string()),
            ("bt_header_dendrite_hotkey", validator.hotkey().to_string()),
            ("bt_header_dendrite_uuid", SESSION.to_owned()),
            ("bt_header_dendrite_signature", signature),
            ("bt_header_dendrite_version", "10005000".to_owned()),
            ("bt_header_input_obj_roles", "W10=".to_owned()),
            ("bt_header_input_obj_messages", "W10=".to_owned()),
            ("computed_body_hash", hash.clone()),
            ("timeout", "12.0".to_owned()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?)))
        .collect()
    }
}

/// Runs `work` on every input, best of five rounds, and returns the time of one.
fn time<T, O>(mut inputs: impl FnMut() -> Vec<T>, mut work: impl FnMut(T) -> O) -> Duration {
    let round = |inputs: Vec<T>, work: &mut dyn FnMut(T) -> O| {
        let n = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let start = Instant::now();
        for input in inputs {
            black_box(work(black_box(input)));
        }
        start.elapsed() / n
    };
    (0..5).map(|_| round(inputs(), &mut work)).min().unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const N: usize = 2000;
    let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
    let messages = vec!["What is the capital of France, and why? ".repeat(10)];
    let body_text = serde_json::json!({
        "name": "Prompting", "timeout": 12.0, "roles": ["user"], "messages": messages, "completion": "",
        "dendrite": {"ip": "192.0.2.1", "version": 10_005_000}, "axon": {"ip": "127.0.0.1"}, "computed_body_hash": "",
    });
    let body_bytes = Bytes::from(body_text.to_string());
    let hash = body_hash(&[messages.as_slice()]);
    let limits = Limits::default();
    let verifier =
        Verifier::new(miner.hotkey(), limits.clone(), Arc::new(SystemClock), Arc::new(NonceStore::new(100_000)));
    let synapses = Synapses::default();
    let synapse: &Arc<SynapseSpec> = synapses.find("/Prompting").ok_or("no synapse")?;
    let mut client = Client { nonce: SystemClock.now_ns(), validator, miner: miner.clone(), hash };

    let headers = client.request();
    let hotkey = client.validator.hotkey();
    let head = read_head(&headers, synapse, &miner.hotkey(), &limits)?;
    let (signed, signature, claimed) = (head.claim.signed.clone(), head.claim.signature, head.body_hash.clone());
    let parsed = SynapseBody::parse(synapse, &claimed, body_bytes.clone())?;
    let replier = SynapseReplier::new(&miner.hotkey(), None);

    let read = time(|| vec![(); N], |()| read_head(&headers, synapse, &miner.hotkey(), &limits).is_ok());
    let verify = time(
        || {
            client.nonce = SystemClock.now_ns();
            let requests: Vec<_> = (0..N).map(|_| client.request()).collect();
            let claims = requests.iter().map(|headers| read_head(headers, synapse, &miner.hotkey(), &limits));
            claims.flatten().map(|head| head.claim).collect()
        },
        |claim| verifier.verify(claim).is_ok(),
    );
    // After that the key is one that proved itself often.
    let signature_check = time(|| vec![(); N], |()| hotkey.verify(&signed, &signature));
    let body = time(
        || vec![body_bytes.clone(); N],
        |bytes| SynapseBody::parse(synapse, &claimed, bytes).map(|body| body.prompt().is_ok()),
    );
    let reply = time(|| vec![(); N], |()| replier.completion(&parsed, "Paris.", Duration::from_millis(1)));

    let all = read + verify + body + reply;
    let share = 100.0 * signature_check.as_secs_f64() / all.as_secs_f64();
    println!("read the head          {read:>12.2?}");
    println!("verify (with nonce)    {verify:>12.2?}");
    println!("  its signature check  {signature_check:>12.2?}");
    println!("read and hash the body {body:>12.2?}   ({} bytes)", body_bytes.len());
    println!("write the reply        {reply:>12.2?}");
    println!("all of it              {all:>12.2?}   {share:.0} % of it the signature check");
    Ok(())
}
