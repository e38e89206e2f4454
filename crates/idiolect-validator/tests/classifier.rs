//! Reward models of the shapes that validators use, with random weights, against transformers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use idiolect_backend::{Classifier, ClassifierInput, Error};
use idiolect_backend_candle::SequenceClassifier;
use idiolect_validator::{ClassifierModel, RewardInput, RewardModel};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/classifiers").join(name)
}

#[tokio::test]
async fn rewards_are_the_logits_that_validators_would_see() {
    for (folder, name, input) in
        [("deberta", "rlhf", RewardInput::Pair), ("gptj", "reciprocate", RewardInput::reciprocate())]
    {
        let classifier = SequenceClassifier::load(&fixture(folder)).expect("it loads");
        let model = ClassifierModel::new(name, Arc::new(classifier), input);
        assert_eq!(model.name(), name);
        let text = std::fs::read_to_string(fixture(folder).join("expected.json")).expect("it is there");
        let expected: Value = serde_json::from_str(&text).expect("JSON");
        for case in expected["cases"].as_array().expect("cases") {
            let (prompt, reply) = (case["prompt"].as_str().expect("text"), case["reply"].as_str().expect("text"));
            let scores = model.scores(prompt, &[reply.to_owned(), "light".to_owned()]).await.expect("scores");
            let logit = case["logits"][0].as_f64().expect("a number");
            assert!((f64::from(scores[0]) - logit).abs() < 1e-4, "{name}: {scores:?} instead of {logit}");
            assert_eq!(scores.len(), 2);
        }
        assert_eq!(model.scores("why", &[]).await.expect("none"), Vec::<f32>::new());
    }
}

/// Gives other rows than it was asked for.
#[derive(Debug)]
struct Odd(Vec<Vec<f32>>);

#[async_trait]
impl Classifier for Odd {
    fn name(&self) -> &str {
        "odd"
    }

    fn n_labels(&self) -> usize {
        1
    }

    async fn logits(&self, _: &[ClassifierInput]) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.0.clone())
    }
}

#[tokio::test]
async fn rows_that_do_not_fit_are_an_error() {
    for rows in [vec![], vec![vec![1.0]], vec![vec![1.0], vec![]]] {
        let model = ClassifierModel::new("rlhf", Arc::new(Odd(rows)), RewardInput::Pair);
        let error = model.scores("why", &["a".to_owned(), "b".to_owned()]).await.expect_err("no scores");
        assert!(error.to_string().contains("odd gave"), "{error}");
    }
}
