//! Whole steps: against recordings, and what becomes of missing models and bad input.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use idiolect_backend::{Embedding, Error};
use idiolect_validator::dpo::{DpoRules, Repetition};
use idiolect_validator::mask::WordList;
use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
use idiolect_validator::{
    BertPart, Cell, Column, DpoModel, FactorKind, Missing, Models, Profile, Reply, RewardModel, Stack, StepReport,
    StepTask, Validator,
};
use serde_json::Value;
use support::{Lengths, Rows, Table, Told, Words, doubles, floats, minilm, near, recorded, strings};

fn profile(changes: &str, base: &str) -> Profile {
    Profile::from_toml(&format!("extends = \"{base}\"\n{changes}")).unwrap()
}

fn answer_task(prompt: &str) -> StepTask {
    StepTask::read(prompt, Some(TaskKind::Answer)).unwrap()
}

/// A unit vector with all of its length, or two parts of it, along given axes.
fn along(dimensions: usize, axis: usize, cosine: f64, other: usize) -> Embedding {
    let mut vector = vec![0.0; dimensions];
    #[expect(clippy::cast_possible_truncation, reason = "embeddings are f32")]
    let mut set = |axis: usize, value: f64| vector[axis] += value as f32;
    set(axis, cosine);
    set(other, (1.0 - cosine * cosine).max(0.0).sqrt());
    vector
}

/// The recorded steps, with replies that bring the recorded masks about: stock phrase, foreign label, listed word, and
/// two near-copies in the history at the distance that gives the recorded diversity.
#[tokio::test]
async fn step_v1_as_recorded() {
    let v = recorded("step_v1");
    let steps = v["steps"].as_array().unwrap();
    let (masks, diversity) = (v["masks"].as_array().unwrap(), floats(&v["diversity"]));
    let of_step = |step: &Value, key: &str| floats(&step[key]).iter().map(|&u| u as usize).collect::<Vec<_>>();
    let text = |s: usize, uid: usize| {
        let is_masked = |mask: usize| floats(&masks[mask])[uid] == 0.0;
        if is_masked(0) {
            return "That is an excellent question.".to_owned();
        }
        let label = if is_masked(1) { "Summary: " } else { "" };
        let word = if is_masked(2) { " badword" } else { "" };
        format!("{label}reply {uid} of step {s}{word}")
    };

    // An axis for each reply, one for each of its two copies, and three for texts that have none of their own.
    let n = steps.len() * 12;
    let (dimensions, filler) = (3 * n + 3, 3 * n);
    let mut history = Vec::new();
    for i in 0..500 {
        history.push(along(dimensions, filler, f64::from(i) / 500.0, filler + 1));
    }
    let mut embeddings = HashMap::from([("prompt".to_owned(), along(dimensions, filler + 2, 1.0, 0))]);
    for (copy, (s, uid)) in [0, 1].into_iter().flat_map(|copy| (0..n).map(move |i| (copy, (i / 12, i % 12)))) {
        let h = diversity[uid];
        let distance = ((h / (1.0 - h)).ln() + 50.0) / 1000.0;
        let i = s * 12 + uid;
        history.push(along(dimensions, i, 1.0 - distance, n + 2 * i + copy));
        embeddings.insert(text(s, uid), along(dimensions, i, 1.0, 0));
    }

    let scores = |name: &'static str| {
        let of = floats(&v["raw_scores"][name]);
        let step = |step: &Value| {
            let failed = of_step(step, "failed_uids");
            #[expect(clippy::cast_possible_truncation, reason = "recorded as f32")]
            let came = of_step(step, "uids").into_iter().filter(|uid| !failed.contains(uid)).map(|uid| of[uid] as f32);
            came.collect::<Vec<_>>()
        };
        Told::new(name, steps.iter().map(step)) as Arc<dyn idiolect_validator::RewardModel>
    };
    let models = Models {
        rewards: vec![scores("rlhf"), scores("reciprocate"), scores("dpo")],
        encoder: Some(Arc::new(Table { dimensions, embeddings })),
        nsfw: Some(Arc::new(WordList::new(["badword"]))),
        ..Models::default()
    };
    // Axes have nothing in common, so the relevance mask gets a bound that all pass.
    let profile = profile("[relevance]\nmpnet = 0.0\n", "openvalidators-1.2");
    let mut validator = Validator::new(profile, models, Missing::LeaveOut).unwrap();
    validator.remember(&history);
    for (s, step) in steps.iter().enumerate() {
        let failed = of_step(step, "failed_uids");
        let replies: Vec<Reply> = of_step(step, "uids")
            .into_iter()
            .map(|uid| {
                let text = format!(" {}\n", text(s, uid));
                Reply { succeeded: !failed.contains(&uid), ..Reply::new(u16::try_from(uid).unwrap(), text) }
            })
            .collect();
        let report = validator.step(&answer_task("prompt"), &replies).await.unwrap();
        let rewards = report.rewards.clone().unwrap();
        near("rewards", &doubles(&rewards), &floats(&step["rewards"]));
        let theirs = floats(&step["moving_average"]);
        let mut ours = validator.average().scores().to_vec();
        ours.resize(theirs.len(), 0.0);
        near("moving average", &ours, &theirs);
        let uids = of_step(step, "uids");
        let asked: Vec<f64> = uids.iter().map(|&uid| theirs[uid]).collect();
        near("moving average of those asked", &report.moving_average, &asked);
        for (i, uid) in uids.iter().enumerate().filter(|(_, uid)| failed.contains(uid)) {
            assert!(report.factors.iter().all(|factor| factor.raw[i].is_none()), "{uid} failed");
        }
    }
    let ours = validator.average().weights();
    near("weights", &ours, &floats(&v["final_weights_l1"])[..ours.len()]);
    assert_eq!(validator.n_steps(), steps.len() as u64);
}

/// Rows of the validators' published schema: each model normalised over its own step, and the product of all.
#[test]
fn published_rows_are_what_the_stack_computes() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/openvalidators");
    let cases = [
        ("history_v1.2.0", Profile::openvalidators_1_2(), &[][..]),
        (
            "history_text_prompting_2.1",
            Profile::text_prompting_2_1(),
            &["task_validation_penalty_applied", "keyword_match_penalty_applied", "sentence_match_penalty_applied"][..],
        ),
    ];
    for (file, profile, penalties) in cases {
        let mut n_rows = 0;
        for line in std::fs::read_to_string(format!("{dir}/{file}.jsonl")).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            if !row["dpo_reward_model"].is_array() {
                continue;
            }
            #[expect(clippy::cast_possible_truncation, reason = "recorded as f32")]
            let column = |name: &str| Column::new(name, floats(&row[name]).iter().map(|&x| x as f32).collect());
            let n = row["uids"].as_array().unwrap().len();
            let succeeded: Vec<bool> = match row["completion_status_codes"].as_array() {
                Some(codes) => codes.iter().map(|code| code == "200").collect(),
                None => row["completions"].as_array().unwrap().iter().map(|c| c != "").collect(),
            };
            let scores: Vec<Column> = profile
                .rewards
                .iter()
                .filter(|(_, weight)| **weight > 0.0)
                .map(|(name, _)| Column { name: name.clone(), ..column(&format!("{name}_reward_model")) })
                .collect();
            let masks = profile.masks.iter().map(|mask| match mask.as_str() {
                "diversity" => column("diversity_reward_model_normalized"),
                name => column(&format!("{name}_filter")),
            });
            let factors: Vec<Column> = masks.chain(penalties.iter().map(|name| column(name))).collect();
            let step = Stack::new(&profile).step(&succeeded, &scores, &factors).unwrap();
            for normalised in &step.normalised {
                let theirs = floats(&row[format!("{}_reward_model_normalized", normalised.name)]);
                near(&normalised.name, &doubles(&normalised.values), &theirs);
            }
            near("rewards", &doubles(&step.rewards), &floats(&row["rewards"]));
            if let Some(raw) = row["diversity_reward_model"].as_array().filter(|_| !penalties.is_empty()) {
                #[expect(clippy::cast_possible_truncation, reason = "recorded as f32")]
                let mask = |raw: &Value| f64::from(profile.gate.factor(raw.as_f64().unwrap() as f32, None));
                let applied = floats(&row["diversity_reward_model_normalized"]);
                for ((raw, applied), ok) in raw.iter().zip(applied).zip(&succeeded) {
                    assert!(!ok || mask(raw) == applied, "{raw}");
                }
            }
            assert_eq!(step.rewards.len(), n);
            n_rows += 1;
        }
        assert!(n_rows > 10, "{file}");
    }
}

fn detail(report: &StepReport, factor: &str, name: &str) -> Vec<Cell> {
    let factor = report.factor(factor).unwrap();
    factor.details.iter().find(|column| column.name == name).unwrap().cells.clone()
}

fn numbers(cells: &[Cell]) -> Vec<f64> {
    cells
        .iter()
        .map(|cell| match cell {
            Cell::Number(number) => f64::from(*number),
            other => panic!("{other:?} is no number"),
        })
        .collect()
}

#[tokio::test]
async fn diversity_and_relevance_as_recorded() {
    let (encoder, windows) = minilm();
    let models =
        Models { encoder: Some(encoder.clone()), bert: Some(BertPart { encoder, windows }), ..Models::default() };
    let versions = [("openvalidators-1.2", "reward_v1"), ("text-prompting-2.1", "mask_v2")];
    for (version, key) in versions {
        let new = |masks: &str| {
            let changed = profile(&format!("masks = [{masks}]\n"), version);
            Validator::new(changed, models.clone(), Missing::LeaveOut).unwrap()
        };
        for case in recorded("diversity")["cases"].as_array().unwrap() {
            let texts = strings(&case["texts"]);
            let replies: Vec<Reply> = texts.iter().map(|text| Reply::new(0, text.as_str())).collect();
            let mut validator = new("\"diversity\"");
            let report = validator.step(&answer_task("x"), &replies).await.unwrap();
            let factor = report.factor("diversity").unwrap();
            let name = case["name"].as_str().unwrap();
            near(
                name,
                &numbers(&detail(&report, "diversity", "diversity_reward_model_batch")),
                &floats(&case["batch_reward_v2"]),
            );
            // Version 1.2 fails on a single reply.
            if case[key].is_array() {
                near(name, &doubles(&factor.applied), &floats(&case[key]));
            }
        }
        let v = recorded("relevance");
        let replies: Vec<Reply> = strings(&v["completions"]).into_iter().map(|text| Reply::new(0, text)).collect();
        let task = answer_task(v["prompt"].as_str().unwrap());
        let report = new("\"relevance\"").step(&task, &replies).await.unwrap();
        near("relevance", &doubles(&report.factor("relevance").unwrap().applied), &floats(&v["reward"]));
        near("bert", &numbers(&detail(&report, "relevance", "relevance_filter_bert_score")), &floats(&v["bert_part"]));
        near(
            "mpnet",
            &numbers(&detail(&report, "relevance", "relevance_filter_mpnet_score")),
            &floats(&v["mpnet_part"]),
        );
    }
}

fn all_models() -> Models {
    let (_, windows) = minilm();
    Models {
        rewards: vec![Arc::new(Lengths("dpo")), Arc::new(Lengths("rlhf")), Arc::new(Lengths("reciprocate"))],
        encoder: Some(Arc::new(Words)),
        bert: Some(BertPart { encoder: Arc::new(Words), windows: windows.clone() }),
        nsfw: Some(Arc::new(WordList::new(["badword"]))),
        ngrams: Some(windows),
    }
}

/// A whole step of version 2.1, whose factors are computed one by one beside it.
#[tokio::test]
async fn text_prompting_step_is_the_product_of_its_factors() {
    let task = text_prompting::Task {
        kind: TaskKind::Augment,
        base_text: "Leaves make sugar out of light and water in the morning sun.".to_owned(),
        criteria: vec![Criterion::NoLists, Criterion::Length { target: 6, unit: Unit::Words }],
    };
    let step = StepTask::read(&task.compose(), None).unwrap();
    let texts = [
        "  Leaves make sugar out of light. ",
        "- Leaves make sugar in the morning.",
        "Sure! Here it is: leaves make water and light sugar.",
        "Rubber ducks float.",
        "Answer: light and water make sugar.",
        "leaves make sugar badword light",
        "",
        "Leaves make sugar out of light",
    ];
    let changes = "[relevance]\nbert = -0.2\n";
    let mut validator = Validator::new(profile(changes, "text-prompting-2.1"), all_models(), Missing::Refuse).unwrap();
    let mut replies: Vec<Reply> = (0..).zip(texts).map(|(uid, text)| Reply::new(uid, text)).collect();
    replies[7].succeeded = false;
    let report = validator.step(&step, &replies).await.unwrap();
    let applied = |name: &str| report.factor(name).unwrap().applied.clone();
    // An empty reply is contained in every prompt.
    assert_eq!(applied("blacklist"), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(applied("nsfw"), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(applied("content_match")[..4], [1.0, 1.0, 0.9, 1.0]);
    assert_eq!(applied("keyword_match")[3..6], [1.0, 0.0, 1.0]);
    assert_eq!(applied("relevance")[3], 0.0);
    let off_by = |n: f64| 0.25 * (1.0 - (-10.0 * ((6.0 - n) / 6.0_f64).powi(2)).exp());
    let ours = doubles(&applied("task_validation"));
    // The dash counts as a word. An empty reply is one word long, and a failed call's text is looked at, too.
    let expected =
        [off_by(6.0), 0.5 + off_by(7.0), off_by(10.0), off_by(3.0), off_by(6.0), off_by(5.0), off_by(1.0), off_by(6.0)];
    near("task_validation", &ours, &expected.map(|penalty| 1.0 - penalty.min(0.6)));

    let rewards = report.rewards.clone().unwrap();
    let product = |i: usize| {
        let mut sum = 0.0;
        let mut product = 1.0;
        for factor in &report.factors {
            match factor.kind {
                FactorKind::RewardModel { weight } => sum += weight * f64::from(factor.applied[i]),
                FactorKind::Mask | FactorKind::Penalty => product *= f64::from(factor.applied[i]),
            }
        }
        sum * product
    };
    near("rewards", &doubles(&rewards), &(0..8).map(product).collect::<Vec<_>>());
    assert!(rewards[0] > 0.0 && rewards[6] == 0.0 && rewards[7] == 0.0, "{rewards:?}");
    assert!(report.missing.is_empty());
    let names: Vec<String> = report.log_columns().into_iter().map(|column| column.name).collect();
    for name in [
        "dpo_reward_model",
        "dpo_reward_model_normalized",
        "reciprocate_reward_model",
        "blacklist_filter_matched_ngram",
        "relevance_filter_bert_score",
        "diversity_reward_model_historic",
        "nsfw_filter_score",
        "task_validation_penalty_raw",
        "keyword_match_penalty_adjusted",
        "sentence_match_penalty_applied",
        "rewards",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    // The profile weighs it by nothing.
    assert!(!names.iter().any(|name| name.starts_with("rlhf")));
    assert_eq!(report.best, rewards.iter().position(|r| *r == rewards.iter().copied().fold(0.0, f32::max)));
}

#[tokio::test]
async fn questions_are_cut_before_they_are_scored() {
    let task = StepTask::read("Anything", Some(TaskKind::Followup)).unwrap();
    let replies = [Reply::new(0, "Answer: none. What is light? And why?"), Reply::new(1, "Tell me of water.")];
    for (version, masked) in [("openvalidators-1.2", true), ("text-prompting-2.1", false)] {
        let profile = profile("masks = [\"task_validator\"]\n", version);
        let mut validator = Validator::new(profile, all_models(), Missing::LeaveOut).unwrap();
        let report = validator.step(&task, &replies).await.unwrap();
        assert_eq!(report.factor("task_validator").unwrap().applied[0] == 0.0, masked, "{version}");
    }
}

#[tokio::test]
async fn best_questions_are_blacklisted_once_they_are_answered() {
    let profile = profile("masks = [\"blacklist\"]\n", "openvalidators-1.2");
    let mut validator = Validator::new(profile, all_models(), Missing::Refuse).unwrap();
    let steps = [
        (TaskKind::Followup, "Why?"),
        (TaskKind::Answer, "Why?"),
        (TaskKind::Answer, "Why?"),
        (TaskKind::Followup, "Because?"),
    ];
    let mut masks = Vec::new();
    for (kind, text) in steps {
        let task = StepTask::read("A prompt.", Some(kind)).unwrap();
        let others = (1..4).map(|uid| Reply::new(uid, format!("other {uid}{}", "!".repeat(usize::from(uid)))));
        let replies: Vec<Reply> = std::iter::once(Reply::new(0, text)).chain(others).collect();
        let report = validator.step(&task, &replies).await.unwrap();
        let best = report.best.unwrap();
        masks.push((report.factor("blacklist").unwrap().applied[0], replies[best].text.clone()));
    }
    // Whatever is best in the first step is forbidden from the third on.
    let question = masks[0].1.clone();
    let task = answer_task("A prompt.");
    let report = validator.step(&task, &[Reply::new(0, question.as_str()), Reply::new(1, "New.")]).await.unwrap();
    assert_eq!(report.factor("blacklist").unwrap().applied, [0.0, 1.0]);
    validator.begin_round();
    let report = validator.step(&task, &[Reply::new(0, question.as_str()), Reply::new(1, "New.")]).await.unwrap();
    assert_eq!(report.factor("blacklist").unwrap().applied, [1.0, 1.0]);
}

#[tokio::test]
async fn what_is_missing_is_said_and_never_made_up() {
    let replies = [Reply::new(0, "one reply"), Reply::new(1, "and a second, longer one"), Reply::new(2, "third")];
    let with = |names: &[&'static str]| Models {
        rewards: names
            .iter()
            .map(|&name| Arc::new(Lengths(name)) as Arc<dyn idiolect_validator::RewardModel>)
            .collect(),
        ..all_models()
    };
    let profile = profile("[relevance]\nbert = -1.0\nmpnet = 0.0\n", "openvalidators-1.2");
    let error = Validator::new(profile.clone(), with(&["dpo"]), Missing::Refuse).unwrap_err().to_string();
    assert_eq!(error, "nothing to compute reciprocate, rlhf with");
    let mut rewards = Vec::new();
    for missing in [Missing::LeaveOut, Missing::Renormalise] {
        let mut validator = Validator::new(profile.clone(), with(&["dpo", "rlhf"]), missing).unwrap();
        let report = validator.step(&answer_task("A prompt."), &replies).await.unwrap();
        assert_eq!(report.missing.len(), 1);
        assert_eq!((report.missing[0].name.as_str(), report.missing[0].weight), ("reciprocate", Some(0.3)));
        assert!(report.factor("reciprocate").is_none());
        let product = |i: usize| {
            let masks = report.factors.iter().filter(|factor| factor.kind == FactorKind::Mask);
            let scale = if missing == Missing::LeaveOut { 1.0 } else { 0.7 };
            let of = |name: &str| f64::from(report.factor(name).unwrap().applied[i]);
            let masks = masks.map(|factor| f64::from(factor.applied[i])).product::<f64>();
            (0.3 * of("dpo") + 0.4 * of("rlhf")) / scale * masks
        };
        near("rewards", &doubles(report.rewards.as_ref().unwrap()), &(0..3).map(product).collect::<Vec<_>>());
        rewards.push(report.rewards);
    }
    assert_ne!(rewards[0], rewards[1]);
    // Masks alone are no reward, and leave the moving average as it was.
    let mut validator = Validator::new(profile, with(&[]), Missing::Renormalise).unwrap();
    let report = validator.step(&answer_task("A prompt."), &replies).await.unwrap();
    assert_eq!((report.rewards, report.best, report.moving_average), (None, None, vec![0.0; 3]));
    let nothing = Validator::new(Profile::text_prompting_2_1(), Models::default(), Missing::LeaveOut).unwrap();
    let names: Vec<&str> = nothing.missing().iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(names, ["dpo", "reciprocate", "blacklist", "relevance.bert", "relevance.mpnet", "diversity", "nsfw"]);
}

async fn step_of(version: &str, texts: &[&str]) -> StepReport {
    let mut validator = Validator::new(profile("", version), all_models(), Missing::Refuse).unwrap();
    let replies: Vec<Reply> = texts.iter().map(|text| Reply::new(0, *text)).collect();
    validator.step(&answer_task("What do leaves make out of light?"), &replies).await.unwrap()
}

#[tokio::test]
async fn bad_input_has_defined_results() {
    let long = "Leaves make sugar out of light. ".repeat(3_125);
    assert_eq!(long.len(), 100_000);
    for version in ["openvalidators-1.2", "text-prompting-2.1"] {
        let empty = step_of(version, &[]).await;
        assert_eq!((empty.rewards, empty.best), (Some(vec![]), None));
        assert!(empty.factors.iter().all(|factor| factor.raw.is_empty() && factor.applied.is_empty()));
        // The reward of a distance of 0, as in version 2.1; 1.2 itself fails on a single reply.
        let one = step_of(version, &["Leaves make sugar out of light."]).await;
        let batch = numbers(&detail(&one, "diversity", "diversity_reward_model_batch"));
        near("one reply", &batch, &[0.017_986_21]);
        let same = step_of(version, &["Leaves make sugar."; 3]).await;
        let batch = numbers(&detail(&same, "diversity", "diversity_reward_model_batch"));
        near("identical replies", &batch, &[0.017_986_21; 3]);
        let report = step_of(version, &["", "   ", &long, "Leaves make sugar."]).await;
        let rewards = report.rewards.unwrap();
        assert!(rewards.iter().all(|reward| reward.is_finite()), "{rewards:?}");
        // Without a word there is no direction: as near to all as can be, and irrelevant.
        assert_eq!(report.factors.iter().find(|f| f.name == "relevance").unwrap().applied[..2], [0.0, 0.0]);
        assert_eq!(rewards[..2], [0.0, 0.0]);
    }
}

#[tokio::test]
async fn figures_that_are_no_numbers_earn_nothing() {
    let scores = || Told::new("dpo", [vec![f32::NAN, 1.0, 2.0], vec![1.0, f32::INFINITY, 3.0]]);
    let embeddings =
        [("prompt", vec![1.0, 0.0]), ("a", vec![f32::NAN, 0.0]), ("b", vec![0.0, 0.0]), ("c", vec![0.8, 0.6])];
    let embeddings = embeddings.map(|(text, embedding)| (text.to_owned(), embedding)).into();
    let models = Models {
        rewards: vec![scores()],
        encoder: Some(Arc::new(Table { dimensions: 2, embeddings })),
        ..Models::default()
    };
    let mut validator = Validator::new(Profile::text_prompting_2_1(), models, Missing::LeaveOut).unwrap();
    let replies = [Reply::new(0, "a"), Reply::new(1, "b"), Reply::new(2, "c")];
    for _ in 0..2 {
        let report = validator.step(&answer_task("prompt"), &replies).await.unwrap();
        assert_eq!(report.factor("relevance").unwrap().applied, [0.0, 0.0, 1.0]);
        assert!(report.rewards.unwrap().iter().all(|reward| reward.is_finite()));
        let normaliser = validator.stack().normaliser("dpo").unwrap();
        assert!(normaliser.mean().is_finite() && normaliser.variance().is_finite());
    }
    assert_eq!(validator.history().unwrap().len(), 2);
}

#[tokio::test]
async fn a_backend_with_rows_of_no_numbers_gives_the_lowest_reward() {
    let profile = Profile::text_prompting_2_1();
    let dpo = DpoModel::new(Arc::new(Rows::new(true)), profile.dpo);
    let models = Models { rewards: vec![Arc::new(dpo)], ..Models::default() };
    let mut validator = Validator::new(profile, models, Missing::LeaveOut).unwrap();
    let replies = [Reply::new(0, "a reply of some length"), Reply::new(1, "another reply")];
    let report = validator.step(&answer_task("prompt"), &replies).await.unwrap();
    assert_eq!(report.factor("dpo").unwrap().raw, [Some(-11.0), Some(-11.0)]);
    assert_eq!(report.factor("dpo").unwrap().applied, [0.5, 0.5]);
}

#[tokio::test]
async fn recorded_dpo_rewards_come_from_a_backend() {
    let v = recorded("dpo");
    let backend = Arc::new(Rows::with_context(false, 48));
    let (first, second) = (Profile::openvalidators_1_2().dpo, Profile::text_prompting_2_1().dpo);
    let rules = [first, DpoRules { repetition: Repetition::Ignored, ..first }, second];
    let mut n_cut = 0;
    for case in v["cases"].as_array().unwrap() {
        let (prompt, reply) = (case["prompt"].as_str().unwrap(), case["completion"].as_str().unwrap());
        n_cut += usize::from(prompt.chars().count() < 48 && prompt.chars().count() + reply.chars().count() > 48);
        for (rules, key) in rules.into_iter().zip(["v1", "v1_no_penalty", "v2"]) {
            let model = DpoModel::new(Arc::<Rows>::clone(&backend), rules);
            let ours = model.scores(prompt, &[reply.to_owned()]).await.unwrap();
            near(&format!("{key} of {reply:?}"), &[f64::from(ours[0])], &[case[key].as_f64().unwrap()]);
        }
    }
    assert!(n_cut > 0, "some replies are cut");
}

#[tokio::test]
async fn a_model_that_fails_leaves_everything_as_it_was() {
    let models = Models { rewards: vec![Told::new("dpo", [vec![1.0, 2.0], vec![1.0]])], ..all_models() };
    let mut validator = Validator::new(Profile::text_prompting_2_1(), models, Missing::LeaveOut).unwrap();
    let replies = [Reply::new(0, "one reply"), Reply::new(1, "another")];
    let task = answer_task("prompt");
    validator.step(&task, &replies).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = |validator: &Validator, name: &str| {
        validator.save(dir.path().join(name)).unwrap();
        let mut value: Value = serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap();
        let counts = value["ngrams"]["counts"].as_array_mut().unwrap();
        counts.sort_by_key(ToString::to_string);
        value
    };
    let before = state(&validator, "before");
    let error = validator.step(&task, &replies).await.unwrap_err();
    assert_eq!(error.to_string(), "dpo cannot be computed");
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<Error>().unwrap().to_string();
    assert!(source.contains("1 answers, expected one for each of 2 texts"), "{source}");
    assert!(validator.step(&task, &replies).await.is_err());
    assert_eq!(state(&validator, "after"), before);
    assert_eq!((validator.n_steps(), validator.history().unwrap().len()), (1, 2));
}
