//! What every encoder must do.

use crate::{Embedder, Embedding};

/// Checks an encoder against the contract of [`Embedder`].
///
/// # Panics
/// When the encoder breaks it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use idiolect_backend::{testkit, HashEmbedder};
///
/// testkit::embedder_conformance(&HashEmbedder::default()).await;
/// # }
/// ```
pub async fn embedder_conformance(embedder: &dyn Embedder) {
    assert!(!embedder.name().is_empty(), "an encoder has a name");
    assert!(embedder.dimensions() > 0 && embedder.max_tokens() > 0, "an encoder has dimensions and room for tokens");
    assert!(embed(embedder, &[]).await.is_empty(), "no texts, no embeddings");

    let texts = ["The cat sat on the mat.", "Katzen & Hunde: Grüße aus Köln 👋", "x", "fn main() {}", ""];
    let together = embed(embedder, &texts).await;
    for (text, embedding) in texts.iter().zip(&together) {
        let alone = embed(embedder, &[text]).await;
        check_near(&alone[0], embedding, 1e-5, "an embedding does not depend on the rest of the call");
    }
    let reversed: Vec<_> = texts.iter().rev().copied().collect();
    for (a, b) in together.iter().zip(embed(embedder, &reversed).await.iter().rev()) {
        check_near(a, b, 1e-5, "embeddings come in the order of their texts");
    }
    let far: f32 = together[0].iter().zip(&together[3]).map(|(a, b)| a * b).sum();
    assert!(far < 0.999, "different texts differ, their cosine is {far}");

    let long = "the same long text again ".repeat(embedder.max_tokens());
    let longer = format!("{long} and then something else entirely");
    let cut = embed(embedder, &[&long, &longer]).await;
    check_near(&cut[0], &cut[1], 1e-4, "what lies beyond max_tokens does not count");
}

async fn embed(embedder: &dyn Embedder, texts: &[&str]) -> Vec<Embedding> {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    let embeddings = embedder.embed(&texts).await.expect("embeddings");
    assert_eq!(embeddings.len(), texts.len(), "one embedding for each text");
    for (text, embedding) in texts.iter().zip(&embeddings) {
        assert_eq!(embedding.len(), embedder.dimensions(), "an embedding has as many values as dimensions");
        let length = embedding.iter().map(|v| v * v).sum::<f32>().sqrt();
        let is_unit = (length - 1.0).abs() < 1e-3 || (length == 0.0 && text.trim().is_empty());
        assert!(is_unit, "an embedding has unit length, got {length}");
    }
    embeddings
}

fn check_near(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= tolerance, "{what}: {off} apart");
}
