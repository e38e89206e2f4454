//! From texts to rewards with the real encoder, against figures recorded from the validators' own modules.

use idiolect_backend::Embedder;
use idiolect_backend_candle::SentenceEncoder;
use idiolect_uniqueness::{Candidate, GateProfile, Population, Selector};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    texts: Vec<String>,
    reward_v1: Option<Vec<f32>>,
    reward_v2: Vec<f32>,
    mask_v2: Vec<f32>,
}

#[track_caller]
fn near(ours: &[f32], recorded: &[f32], name: &str) {
    assert_eq!(ours.len(), recorded.len(), "{name}");
    for (a, b) in ours.iter().zip(recorded) {
        assert!((a - b).abs() < 1e-4, "{name}: {ours:?}, recorded {recorded:?}");
    }
}

#[tokio::test]
async fn texts_earn_what_the_validators_gave() {
    let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
    let encoder = SentenceEncoder::load(&dir).expect("it loads");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/scoring/diversity.json");
    let recorded: Recorded = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let [v1, v2] = GateProfile::built_in();
    for case in recorded.cases {
        let embeddings = encoder.embed(&case.texts).await.unwrap();
        let rewards = v2.batch_rewards(&embeddings);
        near(&rewards, &case.reward_v2, &case.name);
        if let Some(reward_v1) = &case.reward_v1 {
            near(&v1.batch_rewards(&embeddings), reward_v1, &case.name);
        }
        let masks: Vec<f32> = rewards.iter().map(|&b| v2.factor(b, None)).collect();
        assert_eq!(masks, case.mask_v2, "{}", case.name);

        // The selector never prefers a reply that the validators would mask to one that they would not.
        let candidates: Vec<Candidate<'_>> = embeddings
            .iter()
            .map(|e| Candidate { embedding: Some(e), quality: 0.5, source: "m", distinctiveness: None })
            .collect();
        let selection = Selector::default().select(&candidates, &Population::new(encoder.name())).unwrap();
        if case.texts.len() > 1 && case.mask_v2.contains(&1.0) {
            assert_eq!(case.mask_v2[selection.chosen], 1.0, "{}", case.name);
        }
    }
}
