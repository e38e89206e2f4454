//! The sentence encoders against recorded embeddings of the Python originals.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use idiolect_backend::{Embedder, ErrorKind, testkit};
use idiolect_backend_candle::{EncoderConfig, LoadError, SentenceEncoder};
use idiolect_models::{NoProgress, Resolver, ResolverConfig};
use serde::Deserialize;

/// Loads an encoder onto the device that `IDIOLECT_TEST_DEVICE` names, else for the processor.
fn load(dir: &Path) -> SentenceEncoder {
    let mut config = EncoderConfig::default();
    if let Ok(device) = std::env::var("IDIOLECT_TEST_DEVICE") {
        config.device = device.parse().expect("IDIOLECT_TEST_DEVICE names a device");
    }
    SentenceEncoder::load_with(dir, config).expect("it loads")
}

fn dir() -> PathBuf {
    idiolect_models::testing::model("minilm").expect("the default encoder").dir
}

fn shared() -> Arc<SentenceEncoder> {
    static ENCODER: OnceLock<Arc<SentenceEncoder>> = OnceLock::new();
    Arc::clone(ENCODER.get_or_init(|| Arc::new(load(&dir()))))
}

/// Loads all-mpnet-base-v2, 438 MB, where it is on this machine already or may be fetched.
#[expect(clippy::print_stdout, reason = "says why it skips")]
async fn mpnet() -> Option<SentenceEncoder> {
    let dir = if std::env::var_os("IDIOLECT_E2E").is_some_and(|value| value == "1") {
        idiolect_models::testing::model("mpnet").expect("it can be fetched").dir
    } else {
        let mut config = ResolverConfig::from_env();
        config.offline = true;
        let resolver = Resolver::new(config).unwrap();
        let Ok(files) = resolver.resolve(&"mpnet".parse().unwrap(), &NoProgress).await else {
            println!("skipped: mpnet is not on this machine; IDIOLECT_E2E=1 fetches it");
            return None;
        };
        files.dir
    };
    Some(load(&dir))
}

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    texts: Vec<String>,
    embeddings: Vec<Vec<f32>>,
}

fn vectors(file: &str) -> String {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/scoring");
    std::fs::read_to_string(PathBuf::from(dir).join(file)).unwrap()
}

/// Compares embeddings with recorded ones; returns how many there were, and how far off the worst value is.
async fn compare(encoder: &SentenceEncoder, file: &str) -> (usize, f32) {
    let recorded: Recorded = serde_json::from_str(&vectors(file)).unwrap();
    let (mut n, mut worst) = (0, 0f32);
    for case in recorded.cases {
        let embeddings = encoder.embed(&case.texts).await.unwrap();
        assert_eq!(embeddings.len(), case.embeddings.len());
        for (i, (got, expected)) in embeddings.iter().zip(&case.embeddings).enumerate() {
            let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "{} text {i}: {off} off", case.name);
            worst = worst.max(off);
            n += 1;
        }
    }
    (n, worst)
}

#[tokio::test]
async fn embeddings_are_those_of_the_original() {
    let (n, worst) = compare(&shared(), "diversity.json").await;
    assert!(n > 40, "{n} texts");
    assert!(worst < 5e-6, "far better than asked for, got {worst}");
}

#[tokio::test]
async fn embeddings_of_mpnet_are_those_of_the_original() {
    let Some(encoder) = mpnet().await else { return };
    assert_eq!((encoder.name(), encoder.dimensions(), encoder.max_tokens()), ("all-mpnet-base-v2", 768, 512));
    let (n, worst) = compare(&encoder, "diversity_mpnet.json").await;
    assert!(n > 10, "{n} texts");
    assert!(worst < 5e-6, "far better than asked for, got {worst}");
    let off = cosines(&encoder, "relevance_mpnet.json").await;
    assert!(off < 1e-4, "{off} off");
    testkit::embedder_conformance(&encoder).await;
}

#[derive(Deserialize)]
struct Relevance {
    prompt: String,
    completions: Vec<String>,
    mpnet_part: Vec<f32>,
}

/// Compares cosines to a prompt with recorded ones; returns how far off the worst one is.
async fn cosines(encoder: &SentenceEncoder, file: &str) -> f32 {
    let recorded: Relevance = serde_json::from_str(&vectors(file)).unwrap();
    assert_eq!(recorded.completions.len(), recorded.mpnet_part.len());
    let texts: Vec<String> = std::iter::once(recorded.prompt).chain(recorded.completions).collect();
    let embeddings = encoder.embed(&texts).await.unwrap();
    let cosine = |a: &[f32]| a.iter().zip(&embeddings[0]).map(|(a, b)| a * b).sum::<f32>();
    // The recorded scores have no sign.
    let off = embeddings[1..].iter().zip(&recorded.mpnet_part).map(|(e, recorded)| (cosine(e).abs() - recorded).abs());
    off.fold(0.0, f32::max)
}

#[tokio::test]
async fn cosines_to_a_prompt_are_those_recorded() {
    let off = cosines(&shared(), "relevance.json").await;
    assert!(off < 1e-4, "{off} off");
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let encoder = shared();
    assert_eq!((encoder.name(), encoder.dimensions(), encoder.max_tokens()), ("all-MiniLM-L6-v2", 384, 512));
    testkit::embedder_conformance(&*encoder).await;
}

#[tokio::test]
async fn a_full_queue_is_overloaded() {
    let mut settings = EncoderConfig::default();
    settings.queue = 1;
    let encoder = SentenceEncoder::load_with(&dir(), settings).unwrap();
    let texts = vec!["a long text of many words ".repeat(100); 8];
    let answers = futures_util::future::join_all((0..6).map(|_| encoder.embed(&texts))).await;
    assert!(answers.iter().filter_map(|a| a.as_ref().err()).all(|e| e.kind() == ErrorKind::Overloaded));
    assert!(answers.iter().any(Result::is_err) && answers.iter().any(Result::is_ok));
}

#[test]
fn folders_without_a_usable_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let load = || SentenceEncoder::load(folder.path());
    assert!(matches!(load(), Err(LoadError::Io { path, .. }) if path.ends_with("config.json")));

    let real = dir();
    let config = std::fs::read_to_string(real.join("config.json")).unwrap();
    let put = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    put("config.json", b"{");
    assert!(matches!(load(), Err(LoadError::Damaged { .. })));
    put("config.json", config.replace("\"bert\"", "\"t5\"").as_bytes());
    assert!(matches!(load(), Err(LoadError::Unsupported { .. })));
    put("config.json", config.replace("\"bert\"", "\"mpnet\"").as_bytes());
    assert!(matches!(load(), Err(LoadError::Damaged { .. })), "it names no buckets");
    put("config.json", config.replace("384", "385").as_bytes());
    assert!(matches!(load(), Err(LoadError::Damaged { .. })));
    put("config.json", config.as_bytes());
    put("tokenizer.json", b"[]");
    assert!(matches!(load(), Err(LoadError::Damaged { path, .. }) if path.ends_with("tokenizer.json")));
    std::fs::copy(real.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    assert!(matches!(load(), Err(LoadError::Io { path, .. }) if path.ends_with("model.safetensors")));

    let weights = std::fs::read(real.join("model.safetensors")).unwrap();
    for len in [0, 7, 100, 20_000, weights.len() / 2, weights.len() - 1] {
        put("model.safetensors", &weights[..len]);
        let error = load().unwrap_err();
        assert!(matches!(error, LoadError::Damaged { .. }), "{len} bytes: {error}");
    }
    let mut huge = weights[..64].to_vec();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    put("model.safetensors", &huge);
    assert!(matches!(load(), Err(LoadError::Damaged { .. })));
}
