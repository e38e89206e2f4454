use std::fs;

use serde_json::Value;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/classifiers").join(name)
}

/// Random weights, computed by transformers.
#[tokio::test]
async fn logits_are_those_of_transformers() {
    for name in ["deberta", "gptj"] {
        let classifier = SequenceClassifier::load(&fixture(name)).unwrap();
        assert_eq!((classifier.name(), classifier.n_labels()), (name, 1));
        let text = fs::read_to_string(fixture(name).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let cases = expected["cases"].as_array().unwrap();
        let inputs: Vec<ClassifierInput> = cases
            .iter()
            .map(|case| (case["prompt"].as_str().unwrap(), case["reply"].as_str().unwrap()))
            .map(|(prompt, reply)| match name {
                "deberta" => ClassifierInput::pair(prompt, reply),
                _ => ClassifierInput::one(format!("<|prompter|>{prompt}</s><|assistant|>{reply}</s><|endoftext|>")),
            })
            .collect();
        let rows = classifier.logits(&inputs).await.unwrap();
        assert_eq!(rows.len(), cases.len());
        for (row, case) in rows.iter().zip(cases) {
            let logit = case["logits"][0].as_f64().unwrap();
            assert_eq!(row.len(), 1);
            assert!((f64::from(row[0]) - logit).abs() < 1e-4, "{name}: {} instead of {logit}: {case}", row[0]);
        }
        let alone = classifier.logits(&inputs[1..2]).await.unwrap();
        assert_eq!(alone[0], rows[1], "company is nothing");
        assert_eq!(classifier.logits(&[]).await.unwrap(), Vec::<Vec<f32>>::new());
        let long = ClassifierInput::one("the sky is blue ".repeat(400));
        assert!(classifier.logits(&[long]).await.unwrap()[0][0].is_finite(), "long texts are cut");
    }
}

#[tokio::test]
async fn a_text_without_tokens_is_refused() {
    let classifier = SequenceClassifier::load(&fixture("gptj")).unwrap();
    let error = classifier.logits(&[ClassifierInput::one("")]).await.unwrap_err();
    assert!(error.to_string().contains("without tokens"), "{error}");
}

#[test]
fn what_is_no_classifier_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tokenizer, weights) =
        (dir.path().join("config.json"), dir.path().join("tokenizer.json"), dir.path().join("model.safetensors"));
    let refused = |expected: &str| {
        let error = SequenceClassifier::load(dir.path()).unwrap_err();
        let error = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    };
    refused("config.json");
    fs::write(&config, "{").unwrap();
    refused("config.json is damaged");
    fs::write(&config, r#"{"model_type": "roberta"}"#).unwrap();
    refused(r#"classifier "roberta" with 1 labels is not supported; supported: deberta-v2 and gptj"#);
    for name in ["deberta", "gptj"] {
        fs::copy(fixture(name).join("config.json"), &config).unwrap();
        drop(fs::remove_file(&weights));
        refused("model.safetensors");
        let whole = fs::read(fixture(name).join("model.safetensors")).unwrap();
        for cut in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&weights, &whole[..cut]).unwrap();
            refused("damaged");
        }
        let other = if name == "gptj" { "deberta" } else { "gptj" };
        fs::copy(fixture(other).join("model.safetensors"), &weights).unwrap();
        refused("damaged");
        fs::write(&weights, whole).unwrap();
        drop(fs::remove_file(&tokenizer));
        refused("tokenizer.json");
        fs::write(&tokenizer, "{}").unwrap();
        refused("tokenizer.json is damaged");
    }
    // Shapes that contradict the weights, or themselves.
    let text = fs::read_to_string(&config).unwrap();
    for (key, value) in
        [("n_head", 5), ("n_head", 0), ("rotary_dim", 3), ("rotary_dim", 100), ("n_embd", 48), ("n_positions", 0)]
    {
        let mut shape: Value = serde_json::from_str(&text).unwrap();
        shape[key] = value.into();
        fs::write(&config, shape.to_string()).unwrap();
        refused("damaged");
    }
}
