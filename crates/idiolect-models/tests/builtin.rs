//! The real built-in models, fetched through the user's own settings and cached once per machine.

use std::time::Instant;

use idiolect_models::gguf::GgufHeader;
use idiolect_models::{NoProgress, Resolver, ResolverConfig, Spec};

#[tokio::test]
async fn the_default_models_arrive_whole() {
    let resolver = Resolver::new(ResolverConfig::from_env()).unwrap();
    for name in ["smollm2-135m", "minilm"] {
        let spec: Spec = name.parse().unwrap();
        let files = resolver.resolve(&spec, &NoProgress).await.unwrap();
        let began = Instant::now();
        assert!(resolver.verify(name, &NoProgress).iter().all(idiolect_models::FileCheck::is_ok), "{name}");
        let hashing = began.elapsed();
        let began = Instant::now();
        let again = resolver.resolve(&spec, &NoProgress).await.unwrap();
        // Nothing is hashed again, so this takes no noticeable part of the start.
        assert!(again.cached && began.elapsed() < hashing / 2, "{name}: {:?}", began.elapsed());
        assert_eq!(again.files, files.files);
    }
    let model = resolver.resolve(&"smollm2-135m".parse().unwrap(), &NoProgress).await.unwrap();
    let summary = GgufHeader::read(model.weights().unwrap()).unwrap().summary();
    assert_eq!((summary.architecture.as_deref(), summary.licence.as_deref()), (Some("llama"), Some("apache-2.0")));
    assert_eq!((summary.context_length, summary.n_vocab, summary.n_params), (Some(8192), Some(49152), 134_515_008));
    assert_eq!(
        (summary.quantisation.as_deref(), summary.has_chat_template, summary.missing_bytes),
        (Some("Q4_1"), true, 0)
    );
    assert_eq!(summary.file_bytes, 98_362_432);
    let encoder = resolver.resolve(&"minilm".parse().unwrap(), &NoProgress).await.unwrap();
    assert_eq!(encoder.files.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors", "tokenizer.json"]);
}
