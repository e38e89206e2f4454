//! What a validator remembers from run to run.

mod support;

use std::path::Path;
use std::sync::Arc;

use idiolect_validator::mask::{NgramBlacklist, WordPiece};
use idiolect_validator::task::TaskKind;
use idiolect_validator::{Missing, Models, Profile, Reply, RewardModel, StateError, StepTask, Validator};
use serde_json::Value;
use support::{Lengths, Words};

fn tokenizer() -> WordPiece {
    let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
    WordPiece::from_file(dir.join("tokenizer.json")).expect("it loads")
}

fn models() -> Models {
    let rewards = ["dpo", "reciprocate", "rlhf"].map(|name| Arc::new(Lengths(name)) as Arc<dyn RewardModel>);
    Models { rewards: rewards.to_vec(), ngrams: Some(tokenizer()), ..Models::default() }
}

fn validator(version: &str) -> Validator {
    let models = models();
    let mut text = format!("extends = \"{version}\"\nmasks = [\"blacklist\", \"task_validator\"]\n");
    if version == "text-prompting-2.1" {
        // Phrases become significant after twenty replies rather than a thousand.
        text += "[ngram_blacklist]\nerror = 0.05\n";
    }
    Validator::new(Profile::from_toml(&text).unwrap(), models, Missing::Refuse).unwrap()
}

fn replies(step: usize) -> Vec<Reply> {
    let text = |uid: u16| match uid {
        0..3 => format!("As far as anybody can tell today, item {} is {step}.", uid + 1),
        uid => {
            format!("Reply {uid} of step {step} says something {}.", "else ".repeat(usize::from(uid % 5) + step % 3))
        }
    };
    (0..8).map(|uid| Reply::new(uid, text(uid))).collect()
}

async fn run(validator: &mut Validator, steps: std::ops::Range<usize>) -> Vec<String> {
    let mut reports = Vec::new();
    for step in steps {
        let task = StepTask::read("A prompt.", Some(TaskKind::ALL[step % 3])).unwrap();
        let report = validator.step(&task, &replies(step)).await.unwrap();
        reports.push(format!("{:.6?} {:.6?}", report.log_columns(), report.moving_average));
    }
    reports
}

#[tokio::test]
async fn a_run_goes_on_where_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["openvalidators-1.2", "text-prompting-2.1"] {
        let path = dir.path().join(version);
        let mut whole = validator(version);
        let expected = run(&mut whole, 0..12).await;
        let mut first = validator(version);
        run(&mut first, 0..7).await;
        first.save(&path).unwrap();
        let mut second = validator(version);
        second.load(&path).unwrap();
        assert_eq!(second.n_steps(), 7);
        assert!(run(&mut second, 7..12).await == expected[7..], "{version}");
        let masked = expected[7..].iter().any(|report| report.contains("Text(\"as far as anybody"));
        assert_eq!(masked, version == "text-prompting-2.1");
        second.save(&path).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path())
                .unwrap()
                .filter(|f| { f.as_ref().unwrap().file_name().to_string_lossy().contains("tmp") })
                .count(),
            0
        );
    }
}

#[tokio::test]
async fn one_reply_alone_is_remembered_as_having_no_variance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut first = validator("openvalidators-1.2");
    let task = StepTask::read("A prompt.", Some(TaskKind::Answer)).unwrap();
    first.step(&task, &[Reply::new(0, "alone")]).await.unwrap();
    first.save(&path).unwrap();
    let mut second = validator("openvalidators-1.2");
    second.load(&path).unwrap();
    assert!(second.stack().normaliser("dpo").unwrap().variance().is_nan());
}

/// Compares with ten replies, and keeps fourteen.
fn comparing(models: Models) -> Validator {
    let text = "extends = \"text-prompting-2.1\"\nmasks = [\"relevance\", \"diversity\"]\n[gate]\nhistory_skip = 4\n\
                history_keep = 14\nmode = \"product\"\nhistoric = { slope = 30.0, offset = 3.0 }\n";
    Validator::new(Profile::from_toml(text).unwrap(), models, Missing::LeaveOut).unwrap()
}

fn with_encoder() -> Models {
    Models { encoder: Some(Arc::new(Words)), ..models() }
}

#[tokio::test]
async fn steps_with_a_state_between_them_equal_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut whole = comparing(with_encoder());
    let expected = run(&mut whole, 0..9).await;
    assert_eq!(whole.history().unwrap().len(), 14);
    for (step, expected) in expected.iter().enumerate() {
        let mut one = comparing(with_encoder());
        if step > 0 {
            one.load(&path).unwrap();
        }
        assert!(run(&mut one, step..step + 1).await == [expected.clone()], "step {step}");
        one.save(&path).unwrap();
        // What was cut off in the middle of writing another lies beside it.
        std::fs::write(dir.path().join("state.json.1.tmp"), b"{\"version\": 2, \"prof").unwrap();
    }
    let mut last = comparing(with_encoder());
    last.load(&path).unwrap();
    let rows = |validator: &Validator| validator.history().unwrap().rows().flatten().copied().collect::<Vec<f32>>();
    assert_eq!(rows(&last), rows(&whole));
    // The historic reward has a part in it.
    assert!(expected[8].contains("diversity_reward_model_historic\", cells: [Number("), "{}", expected[8]);
}

#[tokio::test]
async fn a_validator_without_an_encoder_or_tokenizer_keeps_what_it_has_no_use_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut first = comparing(with_encoder());
    run(&mut first, 0..3).await;
    first.save(&path).unwrap();
    let saved = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    let before = saved();
    let mut second = comparing(Models { ngrams: None, ..models() });
    second.load(&path).unwrap();
    run(&mut second, 3..4).await;
    second.save(&path).unwrap();
    let after = saved();
    assert_eq!((&after["ngrams"], &after["history"]), (&before["ngrams"], &before["history"]));
    assert_eq!((&after["n_steps"], after["history"]["rows"].is_string()), (&4.into(), true));
}

#[tokio::test]
async fn damaged_and_foreign_histories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut first = comparing(with_encoder());
    run(&mut first, 0..3).await;
    first.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let check = |key: &str, value: Value, words: &[&str]| {
        let mut state: Value = serde_json::from_slice(&good).unwrap();
        state["history"][key] = value;
        std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
        let mut validator = comparing(with_encoder());
        let error = validator.load(&path).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{error} lacks {word:?}"));
        assert_eq!((validator.n_steps(), validator.history().unwrap().len()), (0, 0));
    };
    check("encoder", "other".into(), &["a history by other of 48 dimensions, expected one by words of 48 dimensions"]);
    check("dimensions", 47.into(), &["a history by words of 47 dimensions"]);
    let rows = serde_json::from_slice::<Value>(&good).unwrap()["history"]["rows"].as_str().unwrap().to_owned();
    check("rows", rows[4..].into(), &["damaged: history.rows has 2685 bytes, expected embeddings of 192 bytes each"]);
    check("rows", rows.replace('A', "!").into(), &["damaged: history.rows: Invalid symbol"]);
    check("rows", "/".repeat(256).into(), &["damaged: history.rows: embedding 0 has length NaN, expected 1"]);
    check("rows", ["A".repeat(256), rows].concat().into(), &["history.rows: embedding 0 has length 0, expected 1"]);
    check("more", 1.into(), &["unknown field `more`"]);
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let mut validator = validator("text-prompting-2.1");
    let error = validator.load(path).unwrap_err();
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text = format!("{text}: {source}");
    }
    for word in words {
        assert!(text.contains(word), "{text} lacks {word:?}");
    }
    assert_eq!(validator.n_steps(), 0);
}

#[tokio::test]
async fn damaged_files_are_refused_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    refused(&path, &["state.json", "No such file"]);
    let mut first = validator("text-prompting-2.1");
    run(&mut first, 0..3).await;
    first.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    for end in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..end]).unwrap();
        refused(&path, &["state.json is damaged", "EOF"]);
    }
    std::fs::write(&path, b"\xff\xfe\x00").unwrap();
    refused(&path, &["is damaged", "line 1"]);
    let change = |key: &str, value: Value| {
        let mut state: Value = serde_json::from_slice(&good).unwrap();
        *state.pointer_mut(key).unwrap_or_else(|| panic!("no {key}")) = value;
        std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    };
    change("/version", 1.into());
    refused(&path, &["has version 1, expected 2"]);
    change("/profile", "mine".into());
    refused(&path, &["is of the profile \"mine\", expected \"text-prompting-2.1\""]);
    change("/normalisers/dpo/variance", (-1.0).into());
    refused(&path, &["damaged: normalisers.dpo.variance is -1, expected a number not below 0"]);
    change("/normalisers/dpo/count", "x".into());
    refused(&path, &["damaged", "expected usize"]);
    change("/moving_average/2", Value::Null);
    refused(&path, &["damaged", "expected f64"]);
    change("/ngrams/vocabulary", 7.into());
    refused(&path, &["damaged: ngrams.vocabulary is 7, expected", "tokenizer in use"]);
    let mut state: Value = serde_json::from_slice(&good).unwrap();
    state["more"] = 1.into();
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    refused(&path, &["unknown field `more`"]);
    let error = first.save(dir.path().join("no/such/folder/state.json")).unwrap_err();
    assert!(matches!(error, StateError::Io { .. }), "{error}");
}

/// What a search with a bound finds is what the plain ratio says.
#[test]
fn blacklists_find_what_the_ratio_says() {
    let mut rules = Profile::text_prompting_2_1().ngram_blacklist.unwrap();
    (rules.n_min, rules.boundary, rules.support) = (3, 0.5, 0.0);
    let mut blacklist = NgramBlacklist::new(rules.clone(), tokenizer());
    let texts: Vec<String> = (0..40).flat_map(replies).map(|reply| reply.text).collect();
    blacklist.add(texts.iter().map(String::as_str));
    let phrases: Vec<String> = blacklist.update().iter().map(|m| m.phrase.clone()).collect();
    assert!(phrases.len() > 20);
    let long = "zebra ".repeat(60) + "as far as anyone can tell today it is " + &"quick ".repeat(60);
    for reply in ["As far as anyone could tell.", "something else else else", "reply 7 of it says", "tell", "", &long] {
        let ratio = |phrase: &&String| idiolect_validator::mask::partial_ratio(phrase, &reply.to_lowercase());
        let bound = rules.partial_ratio_boundary;
        let expected = phrases.iter().find(|phrase| ratio(phrase) > bound);
        assert_eq!(blacklist.find(reply).map(|m| m.phrase).as_ref(), expected, "{reply}");
    }
}
