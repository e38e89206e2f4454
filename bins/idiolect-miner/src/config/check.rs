//! Rules between settings.

use std::collections::BTreeSet;

use idiolect_arena::RecordedSpec;
use idiolect_models::Spec;
use idiolect_validator::Profile;

#[cfg(feature = "candle")]
use super::BACKEND_KEYS;
use super::backend::CPU;
use super::{
    BackendConfig, BackendKind, EncoderKind, Loaded, Network, Origin, PresetKind, Problem, PromptRecord, ServerFlavour,
    preset,
};

/// Adds what contradicts itself to `problems`.
pub(crate) fn check(loaded: &mut Loaded, problems: &mut Vec<Problem>) {
    one_key(loaded, problems);
    let mut problem = |origin: &Origin, message: String| {
        problems.push(Problem { origin: Some(origin.clone()), message });
    };
    network(loaded, &mut problem);
    if let Some(adapter) = &loaded.config.adapter {
        let message = format!("adapter is {}, but the engine of this build cannot load adapters", adapter.display());
        problem(loaded.origin("adapter"), message);
    }
    metrics(loaded, &mut problem);
    pipeline(loaded, &mut problem);
    uniqueness(loaded, &mut problem);
    backends(loaded, &mut problem);
}

/// A key comes from a wallet or from a secret, whichever the stronger layer gives.
fn one_key(loaded: &mut Loaded, problems: &mut Vec<Problem>) {
    let wallet = &loaded.config.wallet;
    let named = ["wallet.name", "wallet.hotkey"].into_iter().map(|key| loaded.origin(key).rank()).max().unwrap_or(0);
    let uri = loaded.origin("wallet.hotkey_uri").rank();
    if wallet.hotkey_uri.is_none() || (wallet.name.is_none() && wallet.hotkey.is_none()) {
        return;
    }
    if uri > named {
        loaded.config.wallet.name = None;
        loaded.config.wallet.hotkey = None;
    } else if named > uri {
        loaded.config.wallet.hotkey_uri = None;
    } else {
        let origin = Some(loaded.origin("wallet.hotkey_uri").clone());
        let message = "both a wallet and a secret are given, expected one of wallet.name/wallet.hotkey and hotkey-uri";
        problems.push(Problem { origin, message: message.to_owned() });
    }
}

fn network(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let config = &loaded.config;
    match &config.network {
        Network::Chain(name) => {
            let historic = config.preset.as_deref().and_then(preset).filter(|p| p.kind == PresetKind::Historic);
            let message = match historic {
                Some(preset) if !matches!(name.as_str(), "local" | "test") => format!(
                    "network is {name}, but preset {} is historic: no validator of the main network speaks this protocol any more; \
                     use network file:PATH with a metagraph snapshot, or network none",
                    preset.name
                ),
                _ => format!(
                    "network is {name}, but this build cannot reach a chain; use network file:PATH with a metagraph snapshot, \
                     or network none to try things out on this machine"
                ),
            };
            problem(loaded.origin("network"), message);
        }
        Network::None if !config.axon.ip.is_loopback() => problem(
            loaded.origin("axon.ip"),
            format!(
                "axon.ip is {}, but without a network only loopback addresses are allowed (127.0.0.1); see network",
                config.axon.ip
            ),
        ),
        Network::File(_)
            if config.wallet.name.is_none() && config.wallet.hotkey.is_none() && config.wallet.hotkey_uri.is_none() =>
        {
            problem(
                loaded.origin("network"),
                "with a network the miner needs its registered key: give wallet.name and wallet.hotkey".to_owned(),
            );
        }
        _ => {}
    }
}

fn metrics(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let config = &loaded.config;
    let Some(addr) = config.metrics.addr else { return };
    if !addr.ip().is_loopback() && !config.metrics.public {
        problem(
            loaded.origin("metrics.addr"),
            format!(
                "metrics.addr is {addr}, which others can reach without a password; use 127.0.0.1 or set metrics.public = true"
            ),
        );
    }
    if addr.port() != 0 && addr.port() == config.axon.port && addr.ip() == config.axon.ip {
        problem(loaded.origin("metrics.addr"), format!("metrics.addr is {addr}, which is the axon's own address"));
    }
}

fn pipeline(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let pipeline = &loaded.config.pipeline;
    if pipeline.margin >= pipeline.cap {
        problem(
            loaded.origin("pipeline.margin"),
            format!("pipeline.margin is {:?}, expected less than pipeline.cap ({:?})", pipeline.margin, pipeline.cap),
        );
    }
}

fn uniqueness(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let uniqueness = &loaded.config.uniqueness;
    if let Err(error) = Profile::find(&uniqueness.profile) {
        problem(loaded.origin("uniqueness.profile"), format!("uniqueness.profile: {error}"));
    }
    encoder(loaded, problem);
    if let (Some(place), EncoderKind::Off) = (&uniqueness.shared_history, uniqueness.encoder) {
        problem(
            loaded.origin("uniqueness.shared_history"),
            format!(
                "uniqueness.shared_history is {place}, but without an encoder (uniqueness.encoder is off) replies are not compared"
            ),
        );
    }
    if let (Some(place), PromptRecord::None) = (&uniqueness.shared_history, loaded.config.pipeline.store_prompts) {
        problem(
            loaded.origin("pipeline.store_prompts"),
            format!(
                "pipeline.store_prompts is none, but uniqueness.shared_history is {place}: miners that share a history tell by a hash that \
                 they answer the same prompt, expected all or hash"
            ),
        );
    }
    let of_encoder =
        [("uniqueness.panel", &uniqueness.panel), ("uniqueness.distinctiveness", &uniqueness.distinctiveness)];
    for (key, path) in of_encoder {
        if let (Some(path), EncoderKind::Off) = (path, uniqueness.encoder) {
            let but = "but uniqueness.encoder is off: replies are not compared";
            problem(loaded.origin(key), format!("{key} is {}, {but}", path.display()));
        }
    }
    if matches!(uniqueness.encoder, EncoderKind::MiniLm | EncoderKind::Mpnet) && !cfg!(feature = "candle") {
        let encoder = uniqueness.encoder.as_str();
        problem(
            loaded.origin("uniqueness.encoder"),
            format!(
                "uniqueness.encoder is {encoder}, which this build cannot run: use off, or build with --features candle"
            ),
        );
    }
    if let Some(feature) = missing_feature(&uniqueness.device) {
        let device = &uniqueness.device;
        problem(
            loaded.origin("uniqueness.device"),
            format!("uniqueness.device: this build has no {device}; build with --features {feature}"),
        );
    }
}

/// What an encoder on a server needs, and no other one has.
fn encoder(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let uniqueness = &loaded.config.uniqueness;
    if uniqueness.encoder == EncoderKind::OpenAi {
        let needed = [
            ("uniqueness.encoder_model", uniqueness.encoder_model.is_none(), "the server's name of the encoder"),
            (
                "uniqueness.encoder_dimensions",
                uniqueness.encoder_dimensions.is_none(),
                "how many values an embedding has",
            ),
        ];
        for (key, _, what) in needed.into_iter().filter(|(_, is_missing, _)| *is_missing) {
            problem(
                loaded.origin("uniqueness.encoder"),
                format!("uniqueness.encoder is openai, which needs {key}: {what}"),
            );
        }
        if let Some(url) = &uniqueness.encoder_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            let origin = loaded.origin("uniqueness.encoder_url");
            problem(origin, format!("uniqueness.encoder_url is {url:?}, expected http:// or https://"));
        }
        if !cfg!(feature = "openai") {
            let message = "uniqueness.encoder is openai, which this build cannot ask; build with --features openai";
            problem(loaded.origin("uniqueness.encoder"), message.to_owned());
        }
        return;
    }
    let foreign = [
        ("uniqueness.encoder_model", uniqueness.encoder_model.is_some()),
        ("uniqueness.encoder_dimensions", uniqueness.encoder_dimensions.is_some()),
        ("uniqueness.encoder_url", uniqueness.encoder_url.is_some()),
        ("uniqueness.encoder_key_env", uniqueness.encoder_key_env.is_some()),
        ("uniqueness.encoder_send_dimensions", uniqueness.encoder_send_dimensions),
    ];
    for (key, _) in foreign.into_iter().filter(|(_, is_given)| *is_given) {
        let encoder = uniqueness.encoder.as_str();
        problem(loaded.origin(key), format!("{key} is for uniqueness.encoder = openai, which is {encoder}"));
    }
}

/// Returns the feature that a device needs and this build lacks.
fn missing_feature(device: &str) -> Option<&'static str> {
    let features = [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))];
    let kind = device.split(':').next();
    features.into_iter().find_map(|(feature, built)| (kind == Some(feature) && !built).then_some(feature))
}

fn backends(loaded: &Loaded, problem: &mut impl FnMut(&Origin, String)) {
    let mut names = BTreeSet::new();
    for (i, backend) in loaded.config.backends.iter().enumerate() {
        let origin = |key: &str| {
            // What an entry does not say itself is told where it says its kind.
            let own = [key, "kind"].map(|key| loaded.origin(&format!("backends.{i}.{key}")));
            own.into_iter().find(|own| **own != Origin::Default).unwrap_or_else(|| loaded.origin("backend"))
        };
        if !names.insert(&backend.name) {
            problem(origin("name"), format!("two backends are named {}, give each its own name", backend.name));
        }
        backend_rules(backend, |key, message| problem(origin(key), message));
    }
}

fn backend_rules(backend: &BackendConfig, mut problem: impl FnMut(&str, String)) {
    let name = &backend.name;
    match backend.kind {
        BackendKind::OpenAi => {
            if backend.model.is_none() {
                problem("kind", format!("backend {name} needs a model: the server's name of it"));
            }
            if backend.key_env.is_some() && backend.key_file.is_some() {
                problem("key_file", format!("backend {name} has key_env and key_file, expected one of them"));
            }
            if let Some(url) = &backend.base_url
                && !(url.starts_with("http://") || url.starts_with("https://"))
            {
                problem("base_url", format!("backend {name}: base_url is {url:?}, expected http:// or https://"));
            }
        }
        BackendKind::Candle | BackendKind::Echo | BackendKind::Recorded => {
            let foreign = [
                ("base_url", backend.base_url.is_some()),
                ("flavour", backend.flavour != ServerFlavour::OpenAi),
                ("key_env", backend.key_env.is_some()),
                ("key_file", backend.key_file.is_some()),
                ("max_parallel_requests", backend.max_parallel_requests.is_some()),
            ];
            for (key, _) in foreign.into_iter().filter(|(_, given)| *given) {
                problem(key, format!("backend {name}: {key} is for backends of kind openai"));
            }
        }
    }
    if backend.kind != BackendKind::Candle {
        let foreign = [
            ("threads", backend.threads.is_some()),
            ("device", backend.device != CPU),
            ("quantize", backend.quantize.is_some()),
            ("kv_type", backend.kv_type.is_some()),
            ("max_kv_bytes", backend.max_kv_bytes.is_some()),
            ("max_kept_bytes", backend.max_kept_bytes.is_some()),
            ("max_batch", backend.max_batch.is_some()),
            ("queue", backend.queue.is_some()),
            ("preset", backend.preset.is_some()),
        ];
        for (key, _) in foreign.into_iter().filter(|(_, given)| *given) {
            problem(key, format!("backend {name}: {key} is for backends of kind candle"));
        }
    }
    #[cfg(feature = "candle")]
    if backend.kind == BackendKind::Candle {
        for bad in crate::candle::bad_settings(backend) {
            let shown = BACKEND_KEYS.iter().find(|key| key.name == bad.key).map(|key| key.show_text(backend));
            let value = shown.unwrap_or(bad.value);
            problem(bad.key, format!("backend {name}: {} is {value}, expected {}", bad.key, bad.expected));
        }
    }
    if backend.kind != BackendKind::Candle && backend.context_tokens == Some(0) {
        problem("context_tokens", format!("backend {name}: context_tokens is 0, expected at least 1"));
    }
    if backend.kind == BackendKind::Recorded {
        recorded(backend, &mut problem);
    }
    if let (BackendKind::Candle, Some(model)) = (backend.kind, &backend.model)
        && let Err(error) = model.parse::<Spec>()
    {
        problem("model", format!("backend {name}: {error}"));
    }
    if backend.kind == BackendKind::Candle && !cfg!(feature = "candle") {
        problem("kind", format!("backend {name}: this build has no candle; build with --features candle"));
    }
    if let Some(feature) = missing_feature(&backend.device) {
        let device = &backend.device;
        problem("device", format!("backend {name}: this build has no {device}; build with --features {feature}"));
    }
    if backend.kind == BackendKind::OpenAi && !cfg!(feature = "openai") {
        problem("kind", format!("backend {name}: this build has no openai; build with --features openai"));
    }
    let paid = backend.prompt_price > 0.0 || backend.completion_price > 0.0;
    if backend.spending_cap.is_some() && !paid {
        problem("spending_cap", format!("backend {name} has a spending_cap but no prices to count with"));
    }
}

/// What a record needs, and what it has no use for.
fn recorded(backend: &BackendConfig, problem: &mut impl FnMut(&str, String)) {
    let name = &backend.name;
    match backend.model.as_deref().map(str::parse::<RecordedSpec>) {
        None => problem(
            "kind",
            format!("backend {name} needs a model: recorded:REPLIES, with ?prompts=FILE&models=NAME,NAME where wanted"),
        ),
        Some(Err(error)) => problem("model", format!("backend {name}: model: {error}")),
        Some(Ok(_)) => {}
    }
    if let Some(n) = backend.context_tokens.filter(|n| *n > 0) {
        problem(
            "context_tokens",
            format!("backend {name}: context_tokens is {n}, expected none: a record has no context"),
        );
    }
}
