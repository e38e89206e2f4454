//! The layers together.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn flags(given: &[(&str, &str)]) -> Vec<(String, String, Vec<String>)> {
    given.iter().map(|(key, value)| ((*key).to_owned(), (*key).to_owned(), vec![(*value).to_owned()])).collect()
}

fn sources(file: &str, env: &[(&str, &str)], given: &[(&str, &str)]) -> Sources {
    Sources {
        flags: flags(given),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        file: Some((PathBuf::from("miner.toml"), file.to_owned())),
    }
}

fn problems(file: &str, env: &[(&str, &str)], given: &[(&str, &str)]) -> Vec<String> {
    match load(&sources(file, env, given)) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_stronger_layer_wins_and_is_named() {
    let file = "preset = \"classic-sn11\"\n[axon]\nport = 1001\n[candidates]\ncount = 2\n";
    let env = [("BT_AXON_PORT", "1002"), ("IDIOLECT_SAMPLING_TOP_P", "0.5"), ("HOME", "/home/x")];
    let loaded = load(&sources(file, &env, &[("axon.port", "1003")])).expect("loads");
    let config = &loaded.config;
    assert_eq!(config.axon.port, 1003);
    assert_eq!(loaded.origin("axon.port").to_string(), "flag --axon.port");
    assert_eq!(config.sampling.top_p, Some(0.5));
    assert_eq!(loaded.origin("sampling.top_p").to_string(), "environment IDIOLECT_SAMPLING_TOP_P");
    assert_eq!(config.candidates.count, 2);
    assert_eq!(loaded.origin("candidates.count").to_string(), "miner.toml:5");
    assert!(config.transports.legacy_http);
    assert_eq!(loaded.origin("transports.legacy_http").to_string(), "preset classic-sn11");
    assert_eq!(config.axon.max_workers, 16);
    assert_eq!(*loaded.origin("axon.max_workers"), Origin::Default);
    assert_eq!(config.data_dir, PathBuf::from("/home/x/.local/share/idiolect"));
}

#[test]
fn without_flags_the_environment_beats_the_file() {
    let loaded = load(&sources("[axon]\nport = 1\n", &[("BT_AXON_PORT", "1002")], &[])).expect("loads");
    assert_eq!(loaded.config.axon.port, 1002);
    let both = [("BT_AXON_PORT", "1002"), ("IDIOLECT_AXON_PORT", "1004")];
    let loaded = load(&sources("", &both, &[])).expect("loads");
    assert_eq!(loaded.config.axon.port, 1004, "our own name is the stronger one");
}

#[test]
fn every_bad_value_is_reported_at_once_with_its_line() {
    let file = "netuid = \"one\"\n\n[axon]\nport = 70000\nprot = 1\n[sampling]\ntemperature = 9\n[pipeline]\nretention = \"soon\"\n\
                [[backends]]\nkind = \"magic\"\n[[backends]]\nkind = \"openai\"\nbase_url = \"localhost\"\n";
    let found = problems(file, &[("IDIOLECT_CANDIDATES_COUNT", "many")], &[("log.format", "xml")]);
    for expected in [
        "miner.toml:1: netuid is the text \"one\", expected whole number",
        "miner.toml:4: axon.port is 70000, expected 0 to 65535",
        "miner.toml:5: unknown key axon.prot, did you mean axon.port?",
        "miner.toml:7: sampling.temperature is 9.0, expected 0 to 5",
        "miner.toml:9: pipeline.retention is the text \"soon\", expected a duration such as 10s, 250ms, 5m, 2h, 30d or a number of seconds",
        "environment IDIOLECT_CANDIDATES_COUNT: candidates.count is \"many\", expected whole number",
        "flag --log.format: log.format is \"xml\", expected text or json",
        "miner.toml:11: backends: kind is \"magic\", expected candle or openai or echo or recorded",
        "miner.toml:13: backend openai needs a model: the server's name of it",
        "miner.toml:14: backend openai: base_url is \"localhost\", expected http:// or https://",
    ] {
        assert!(found.iter().any(|p| p == expected), "{expected}\nin\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), 10, "{}", found.join("\n"));
}

#[test]
fn an_entry_of_no_known_kind_is_taken_for_none() {
    let file = "backend = [\"mine\", \"candle\"]\n[[backends]]\nkind = \"magic\"\nname = \"mine\"\nbase_url = \"http://a\"\n\
                [[backends]]\nkind = \"candle\"\n";
    assert_eq!(
        problems(file, &[], &[]),
        ["miner.toml:3: backends: kind is \"magic\", expected candle or openai or echo or recorded"]
    );
    let found = problems("[[backends]]\nkind = \"echo\"\n[[backends]]\nkind = \"echo\"\n", &[], &[]);
    assert_eq!(found, ["miner.toml:4: two backends are named echo, give each its own name"]);
}

#[test]
fn broken_toml_names_file_and_line() {
    let found = problems("network = \"none\"\n[axon\nport = 1\n", &[], &[]);
    assert!(found[0].starts_with("miner.toml:2: "), "{found:?}");
}

#[test]
fn a_bad_environment_below_a_flag_does_not_matter() {
    assert_eq!(problems("", &[("BT_AXON_PORT", "x")], &[("axon.port", "1")]), [""; 0]);
}

#[test]
fn chain_networks_are_refused_with_a_way_out() {
    for network in ["finney", "local", "test", "ws://127.0.0.1:9944"] {
        let found = problems("", &[("BT_SUBTENSOR_NETWORK", network)], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!(
            "environment BT_SUBTENSOR_NETWORK: network is {network}, but this build cannot reach a chain"
        )));
        assert!(found[0].contains("file:PATH"), "{found:?}");
    }
    assert_eq!(problems("", &[("BT_SUBTENSOR_NETWORK", "finney")], &[("network", "none")]), [""; 0]);
    let historic = problems("", &[], &[("preset", "classic-sn1"), ("network", "finney")]);
    assert!(historic[0].contains("preset classic-sn1 is historic"), "{historic:?}");
    assert!(problems("", &[], &[("network", "mars")])[0].contains("expected none or file:PATH"));
}

#[test]
fn without_a_network_only_loopback_is_listened_on() {
    let found = problems("", &[], &[("axon.ip", "0.0.0.0")]);
    assert!(found[0].contains("only loopback addresses are allowed"), "{found:?}");
    let found = problems("", &[], &[("metrics.addr", "0.0.0.0:9091")]);
    assert!(found[0].contains("metrics.public"), "{found:?}");
    assert_eq!(problems("", &[], &[("metrics.addr", "0.0.0.0:9091"), ("metrics.public", "true")]), [""; 0]);
}

#[test]
fn presets_that_earn_nothing_are_cards() {
    for (name, word) in [("sn1-apex", "apex submit"), ("sn11-trajectory", "50 alpha")] {
        let found = problems("", &[], &[("preset", name)]);
        assert!(found[0].contains("information only") && found[0].contains(word), "{found:?}");
    }
    assert!(
        problems("preset = \"sn7\"\n", &[], &[])[0]
            .starts_with("miner.toml:1: preset is \"sn7\", expected one of local,")
    );
    assert_eq!(problems("", &[], &[("preset", "local")]), [""; 0]);
}

#[test]
fn a_wallet_and_a_secret_do_not_mix_in_one_layer() {
    let env = [("BT_WALLET_NAME", "w")];
    let loaded = load(&sources("", &env, &[("wallet.hotkey_uri", "//Alice")])).expect("loads");
    assert_eq!(
        (loaded.config.wallet.name.as_deref(), loaded.config.wallet.hotkey_uri.as_deref()),
        (None, Some("//Alice"))
    );
    let found = problems("", &[], &[("wallet.name", "w"), ("wallet.hotkey_uri", "//Alice")]);
    assert!(found[0].contains("both a wallet and a secret"), "{found:?}");
    assert!(problems("", &[], &[("network", "file:x.json")])[0].contains("wallet.name"), "a network needs a key");
}

#[test]
fn secrets_are_never_shown() {
    let loaded = load(&sources("", &[], &[("wallet.hotkey_uri", "//Secret")])).expect("loads");
    assert!(!loaded.to_json(true).to_string().contains("Secret"));
    assert!(!format!("{loaded:?}").contains("Secret"));
}

#[test]
fn allowed_hotkeys_are_checked() {
    let found = problems("[policy]\nallow = [\"any\", \"5notakey\", 3]\ndeny = [\"any\"]\n", &[], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].ends_with("; holds the number 3, expected a hotkey's address"), "{found:?}");
    assert!(found[1].starts_with("miner.toml:3: policy.deny holds \"any\", expected a hotkey's address"), "{found:?}");
    assert!(
        found[0].starts_with("miner.toml:2: policy.allow holds \"5notakey\", expected a hotkey's address"),
        "{found:?}"
    );
}

#[test]
fn echo_alone_is_neither_scored_nor_drawn_twice_unless_asked() {
    let loaded = |given: &[(&str, &str)]| load(&sources("", &[], given)).expect("loads");
    let count = |loaded: &Loaded| (loaded.config.uniqueness.encoder, loaded.config.candidates.count);
    let alone = loaded(&[("backend", "echo")]);
    assert_eq!(count(&alone), (EncoderKind::Off, 1));
    assert_eq!(alone.origin("candidates.count").to_string(), "default with backend echo");
    let asked = loaded(&[("backend", "echo"), ("candidates.count", "3"), ("uniqueness.encoder", "minilm")]);
    assert_eq!(count(&asked), (EncoderKind::MiniLm, 3));
    assert_eq!(count(&loaded(&[("backend", "candle,echo")])), (EncoderKind::MiniLm, 4));
}

#[test]
fn a_record_takes_the_first_backends_place_and_is_asked_plainly() {
    let file = "[[backends]]\nkind = \"openai\"\nname = \"vllm\"\nmodel = \"m\"\n[[backends]]\nkind = \"echo\"\n";
    let model = ("model", "recorded:replies.jsonl?models=a,b");
    let both = load(&sources(file, &[], &[model])).expect("loads");
    let kinds: Vec<_> = both.config.backends.iter().map(|b| (b.kind, b.name.as_str())).collect();
    assert_eq!(kinds, [(BackendKind::Recorded, "recorded"), (BackendKind::Echo, "echo")]);
    assert_eq!(both.origin("backends.0.model").to_string(), "flag --model");
    let recipes = |given: &[(&str, &str)]| load(&sources("", &[], given)).expect("loads").config.mutation.recipes;
    assert_eq!((recipes(&[model]), recipes(&[model, ("mutation.recipes", "3")])), (1, 3));
    assert_eq!(recipes(&[]), both.config.mutation.recipes, "echo may be asked otherwise");

    let entry =
        "[[backends]]\nkind = \"recorded\"\nmodel = \"recorded:\"\ncontext_tokens = 9\nkey_env = \"K\"\nthreads = 2\n";
    let expected = [
        "miner.toml:3: backend recorded: model: \"recorded:\" names no record, expected recorded:REPLIES or \
         recorded:REPLIES?prompts=FILE&models=NAME,NAME",
        "miner.toml:4: backend recorded: context_tokens is 9, expected none: a record has no context",
        "miner.toml:5: backend recorded: key_env is for backends of kind openai",
        "miner.toml:6: backend recorded: threads is for backends of kind candle",
    ];
    assert_eq!(problems(entry, &[], &[]), expected);
}

#[test]
fn backends_are_chosen_by_name_or_kind() {
    let file = "[[backends]]\nkind = \"openai\"\nname = \"vllm\"\nmodel = \"m\"\nbase_url = \"http://127.0.0.1:8000/v1\"\ntimeout = 5\n\
                [[backends]]\nkind = \"echo\"\nweight = 2\n";
    let names = |given: &[(&str, &str)]| {
        let loaded = load(&sources(file, &[], given)).expect("loads");
        loaded.config.backends.iter().map(|b| (b.name.clone(), b.model.clone())).collect::<Vec<_>>()
    };
    let entry = |name: &str, model: Option<&str>| (name.to_owned(), model.map(str::to_owned));
    assert_eq!(names(&[]), [entry("vllm", Some("m")), entry("echo", None)]);
    assert_eq!(names(&[("backend", "openai")]), [entry("vllm", Some("m"))]);
    assert_eq!(
        names(&[("backend", "candle,vllm"), ("model", "./x.gguf")]),
        [entry("candle", Some("./x.gguf")), entry("vllm", Some("m"))]
    );
    let loaded = load(&sources(file, &[], &[])).expect("loads");
    assert_eq!(loaded.config.backends[0].timeout, Duration::from_secs(5));
    assert_eq!(loaded.origin("backends.0.timeout").to_string(), "miner.toml:6");
    assert!(problems(file, &[], &[("backend", "gpt")])[0].contains("backend is \"gpt\""));
    assert_eq!(load(&Sources::default()).expect("loads").config.backends, [BackendConfig::default()]);
}

#[test]
fn devices_are_checked() {
    let of = |device: &str| problems(&format!("[[backends]]\nkind = \"candle\"\ndevice = \"{device}\"\n"), &[], &[]);
    assert_eq!(of("cpu"), [""; 0]);
    for wrong in ["gpu", "cpu:0", "CUDA", "cuda:", "cuda:one", "cuda:1:2", ""] {
        let found = of(wrong).remove(0);
        let wrong = if wrong.is_empty() { "\"\"" } else { wrong };
        assert!(found.contains(&format!("device is {wrong}, expected cpu, cuda, cuda:N, metal or metal:N")), "{found}");
    }
    for (device, feature, built) in
        [("cuda:1", "cuda", cfg!(feature = "cuda")), ("metal", "metal", cfg!(feature = "metal"))]
    {
        let expected =
            format!("miner.toml:3: backend candle: this build has no {device}; build with --features {feature}");
        assert_eq!(of(device), if built { vec![] } else { vec![expected] });
        let of_encoder = problems(&format!("[uniqueness]\ndevice = \"{device}\"\n"), &[], &[]);
        let expected =
            format!("miner.toml:2: uniqueness.device: this build has no {device}; build with --features {feature}");
        assert_eq!(of_encoder, if built { vec![] } else { vec![expected] });
    }
}

#[test]
fn settings_of_the_engine_are_read_and_checked() {
    let file = "[[backends]]\nkind = \"candle\"\nquantize = \"q8_0\"\nkv_type = \"q8_0\"\nmax_kv_bytes = \"2GiB\"\nmax_kept_bytes = 0\n\
                max_batch = 8\nqueue = 3\npreset = \"vllm\"\n";
    let backend = load(&sources(file, &[], &[])).expect("loads").config.backends.remove(0);
    let expected = BackendConfig {
        quantize: Some(WeightFormat::Q8_0),
        kv_type: Some(KvFormat::Q8_0),
        max_kv_bytes: Some(Bytes(2 << 30)),
        max_kept_bytes: Some(Bytes(0)),
        max_batch: Some(8),
        queue: Some(3),
        preset: Some(idiolect_backend::Preset::Vllm),
        ..BackendConfig::default()
    };
    assert_eq!(backend, expected);

    let file = "[[backends]]\nkind = \"candle\"\nquantize = \"int4\"\nkv_type = \"f64\"\nmax_kv_bytes = 17\nmax_kept_bytes = \"all\"\n\
                max_batch = 0\nqueue = 0\npreset = \"ollama\"\nmax_batches = 8\nthreads = 0\ncontext_tokens = 0\n[transports]\ngrpc_clock_nonces = \"maybe\"\n";
    let formats = "f32 or f16 or bf16 or q4_0 or q4_1 or q5_0 or q5_1 or q8_0 or q4_k or q5_k or q6_k";
    let expected = [
        format!("miner.toml:3: backends: quantize is \"int4\", expected {formats}"),
        "miner.toml:4: backends: kv_type is \"f64\", expected f32 or f16 or bf16 or q8_0".to_owned(),
        "miner.toml:5: backends: max_kv_bytes is 17, expected at least 1MiB".to_owned(),
        "miner.toml:6: backends: max_kept_bytes is the text \"all\", expected a size such as 64KiB, 1MiB or a number of bytes".to_owned(),
        "miner.toml:7: backend candle: max_batch is 0, expected 1 to 65536".to_owned(),
        "miner.toml:8: backend candle: queue is 0, expected 1 to 65536".to_owned(),
        "miner.toml:9: backends: preset is the text \"ollama\", expected llamacpp or vllm or mistralrs".to_owned(),
        "miner.toml:10: backends: unknown key max_batches, did you mean max_batch?".to_owned(),
        "miner.toml:11: backends: threads is 0, expected at least 1".to_owned(),
        "miner.toml:12: backend candle: context_tokens is 0, expected 16 to 16777216".to_owned(),
        "miner.toml:14: transports.grpc_clock_nonces is the text \"maybe\", expected true or false".to_owned(),
    ];
    // In the order of the file, whichever rule found them.
    assert_eq!(problems(file, &[], &[]), expected);

    let file = "[[backends]]\nkind = \"candle\"\nthreads = 5000\nmax_kept_bytes = \"2GiB\"\nmax_batch = 4_000_000_000\nqueue = 100_000\n\
                [[backends]]\nkind = \"candle\"\nname = \"small\"\nmax_kv_bytes = \"64MiB\"\nquantize = \"none\"\n";
    let expected = [
        "miner.toml:3: backend candle: threads is 5000, expected 1 to 1024",
        "miner.toml:4: backend candle: max_kept_bytes is 2GiB, expected at most max_kv_bytes, which is 1073741824",
        "miner.toml:5: backend candle: max_batch is 4000000000, expected 1 to 65536",
        "miner.toml:6: backend candle: queue is 100000, expected 1 to 65536",
    ];
    assert_eq!(problems(file, &[], &[]), expected);

    // A value that is wrong by itself is told once, whatever other rules would say of it.
    let file = "[pipeline]\ncap = 0\n[[backends]]\nkind = \"candle\"\ndevice = \"cuda:one\"\nmax_kv_bytes = 1000\nmax_kept_bytes = 2000\n";
    let expected = [
        "miner.toml:2: pipeline.cap is 0s, expected 1s to 300s",
        "miner.toml:5: backends: device is cuda:one, expected cpu, cuda, cuda:N, metal or metal:N",
        "miner.toml:6: backends: max_kv_bytes is 1000, expected at least 1MiB",
    ];
    assert_eq!(problems(file, &[], &[]), expected);

    let file = "[[backends]]\nkind = \"echo\"\nkv_type = \"f16\"\nthreads = 2\n";
    let found = problems(file, &[], &[]);
    assert!(
        found.contains(&"miner.toml:3: backend echo: kv_type is for backends of kind candle".to_owned()),
        "{found:?}"
    );
    assert_eq!(found.len(), 2, "{found:?}");
}

#[cfg(feature = "candle")]
#[test]
fn how_keys_and_values_are_kept_depends_on_the_device() {
    let of = |device: &str, kept: &str| {
        let file = format!("[[backends]]\nkind = \"candle\"\ndevice = \"{device}\"\nkv_type = \"{kept}\"\n");
        problems(&file, &[], &[]).into_iter().find(|problem| problem.contains("kv_type"))
    };
    assert_eq!((of("cpu", "q8_0"), of("cuda", "bf16"), of("metal", "f16")), (None, None, None));
    let expected = "miner.toml:4: backend candle: kv_type is q8_0, expected f32, f16 or bf16 on a card";
    assert_eq!(of("cuda:1", "q8_0").as_deref(), Some(expected));
    let expected = "miner.toml:4: backend candle: kv_type is bf16, expected f32, f16 or q8_0 on the processor";
    assert_eq!(of("cpu", "bf16").as_deref(), Some(expected));
}

/// What the reference says of the engine's settings is what the engine says.
#[cfg(feature = "candle")]
#[test]
fn the_bounds_of_the_reference_are_the_engines_own() {
    let bad = BackendConfig {
        threads: std::num::NonZeroUsize::new(usize::MAX),
        context_tokens: Some(0),
        max_batch: Some(0),
        queue: Some(0),
        ..BackendConfig::default()
    };
    let found = crate::candle::bad_settings(&bad);
    assert_eq!(found.len(), 4, "{found:?}");
    for bad in found {
        let key = BACKEND_KEYS.iter().find(|key| key.name == bad.key).expect("a key of that name");
        assert!(key.expected == bad.expected || key.doc.contains(&bad.expected), "{bad}, but {key:?} says otherwise");
    }
}

/// A near pair of candidates and a far one, of which the near ones are better: what is chosen shows where the gate is.
fn chosen(config: &Config) -> (usize, idiolect_uniqueness::Reason) {
    let selector = idiolect_uniqueness::Selector::new(crate::settings::pipeline(config).expect("settings").selector);
    let candidate = |embedding: &'static [f32], quality| idiolect_uniqueness::Candidate {
        embedding: Some(embedding),
        quality,
        source: "m",
        distinctiveness: None,
    };
    // The first two are at a distance of 0.1.
    let (near, far) = (candidate(&[0.9, 0.435_889_9, 0.0], 0.8), candidate(&[0.0, 0.0, 1.0], 0.5));
    let candidates = [candidate(&[1.0, 0.0, 0.0], 0.9), near, far];
    let selection = selector.select(&candidates, &idiolect_uniqueness::Population::new("test")).expect("candidates");
    (selection.chosen, selection.reason)
}

#[test]
fn a_profile_may_be_a_file() {
    use idiolect_uniqueness::Reason;

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("strict.toml");
    let file = format!("[uniqueness]\nprofile = '{}'\n", path.display());
    let with = |profile: &str| {
        std::fs::write(&path, profile).expect("written");
        load(&sources(&file, &[], &[])).map(|loaded| loaded.config)
    };
    assert_eq!(chosen(&Config::default()), (0, Reason::BestThatClears));
    let strict =
        with("extends = \"text-prompting-2.1\"\nname = \"strict\"\n[gate]\npass_above = 0.6\n").expect("loads");
    assert_eq!(chosen(&strict), (2, Reason::BestThatClears), "0.1 is too near where 0.11 passes");
    assert_eq!(crate::settings::pipeline(&strict).expect("settings").selector.profile.name, "strict");
    let product = with("extends = \"text-prompting-2.1\"\n[gate]\nmode = \"product\"\n").expect("loads");
    assert_eq!(chosen(&product).1, Reason::HighestExpected);

    let refused =
        |profile: &str| with(profile).expect_err("refused").problems.iter().map(ToString::to_string).collect();
    let shown = path.display();
    let found: Vec<String> = refused("extends = \"text-prompting-2.1\"\n[gate]\npass_over = 0.5\n");
    assert!(
        found.len() == 1
            && found[0].starts_with(&format!(
                "miner.toml:2: uniqueness.profile: profile {shown}: line 3: gate.pass_over: unknown field `pass_over`"
            )),
        "{found:?}"
    );
    let found: Vec<String> = refused("extends = \"text-prompting-2.1\"\n[gate]\npass_above = 2\n");
    let expected = format!("profile {shown}: line 3: gate.pass_above is 2, expected a number from 0 to 1");
    assert_eq!(found, [format!("miner.toml:2: uniqueness.profile: {expected}")]);
    std::fs::remove_file(&path).expect("removed");
    let found = problems(&file, &[], &[]);
    assert!(found[0].starts_with(&format!("miner.toml:2: uniqueness.profile: profile {shown}: ")), "{found:?}");
    for name in ["sn1", "text-prompting-2.2", ""] {
        let expected = "expected openvalidators-1.2, text-prompting-2.1 or a file";
        assert_eq!(
            problems("", &[], &[("uniqueness.profile", name)]),
            [format!("flag --uniqueness.profile: uniqueness.profile: unknown profile {name:?}, {expected}")]
        );
    }
}

#[test]
fn times_that_no_clock_counts_to_are_refused() {
    let keys = KEYS.iter().filter(|key| key.type_name() == "duration" && key.name != "pipeline.retention");
    for key in keys {
        let found = problems("", &[], &[(key.name, "18000000000000000000")]);
        assert!(found.len() == 1 && found[0].contains(", expected "), "{found:?}");
    }
    let file = "[[backends]]\nkind = \"echo\"\ntimeout = 1e18\n";
    assert_eq!(
        problems(file, &[], &[]),
        ["miner.toml:3: backends: timeout is 1000000000000000000s, expected 1ms to 1d"]
    );
    assert_eq!(
        problems("", &[], &[("policy.rate_period", "0")]),
        ["flag --policy.rate_period: policy.rate_period is 0s, expected 1ms to 1d"]
    );
}

#[test]
fn empty_texts_and_bad_filters_are_shown_as_they_are() {
    let file = "[sampling]\nstop = [\"\"]\n[log]\nfilter = \"a=b=c\"\n";
    let expected = [
        "miner.toml:2: sampling.stop is [\"\"], expected texts that are not empty",
        "miner.toml:4: log.filter is a=b=c, expected a level or directives such as info,idiolect_axon=debug",
    ];
    assert_eq!(problems(file, &[], &[]), expected);
}

#[test]
fn the_clock_in_grpc_nonces_is_refused_unless_asked_for() {
    let loaded = |file: &str| load(&sources(file, &[], &[])).expect("loads").config;
    assert!(!crate::settings::limits(&loaded("")).grpc_clock_nonces);
    assert!(crate::settings::limits(&loaded("[transports]\ngrpc_clock_nonces = true\n")).grpc_clock_nonces);
}

#[test]
fn defaults_and_presets_pass_their_own_rules() {
    load(&Sources::default()).expect("defaults load");
    for preset in PRESETS {
        for (key, _) in preset.values {
            assert!(KEYS.iter().any(|k| k.name == *key), "{} sets {key}", preset.name);
        }
    }
    for preset in PRESETS.iter().filter(|p| p.kind != PresetKind::Card) {
        assert_eq!(problems("", &[], &[("preset", preset.name)]), [""; 0]);
    }
}

#[test]
fn names_flags_and_variables_are_unique() {
    let mut seen = std::collections::BTreeSet::new();
    for key in KEYS {
        for name in key.all_flags().map(str::to_owned).chain(key.all_env()) {
            assert!(seen.insert(name.clone()), "{name} is given twice");
        }
    }
}

#[test]
fn the_template_is_a_file_that_loads() {
    let template = template();
    assert_eq!(problems(&template, &[], &[]), [""; 0]);
    // With every # before a setting taken away it still names known keys only.
    let bare: String = template
        .lines()
        .filter_map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest == "[[backends]]" || rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) => {
                Some(rest)
            }
            Some(_) => None,
            None => Some(line),
        })
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(problems(&bare, &[], &[]), [""; 0]);
}

#[test]
fn variables_that_set_nothing_are_noticed() {
    let env = ["IDIOLECT_AXON_PORT", "IDIOLECT_AXON_PROT", "IDIOLECT_CONFIG", "IDIOLECT_MODELS", "PATH"];
    let env = env.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
    assert_eq!(unknown_variables(&env), ["IDIOLECT_AXON_PROT"]);
}
