//! Against figures recorded from the validators' own modules.

use std::collections::BTreeMap;
use std::sync::Arc;

use idiolect_backend::Echo;
use idiolect_backend::{Embedder, Moments};
use idiolect_backend_candle::SentenceEncoder;
use idiolect_models::{NoProgress, Resolver, ResolverConfig};
use idiolect_validator::dpo::{DpoRules, Repetition};
use idiolect_validator::mask::{
    Blacklist, NgramBlacklist, NsfwClassifier, Relevance, WordList, WordPiece, nsfw_mask, task_validator,
};
use idiolect_validator::penalty::{applied, content_match, keyword_match};
use idiolect_validator::task::{Criterion, Prompt, TaskKind, Unit};
use idiolect_validator::{Column, DpoModel, MovingAverage, Normaliser, Profile, RewardModel, Stack};
use serde_json::Value;

fn recorded(name: &str) -> Value {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/scoring");
    serde_json::from_str(&std::fs::read_to_string(format!("{dir}/{name}.json")).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// Checks figures against the recording.
#[track_caller]
fn near(name: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{name}: off by {worst:.1e}: {ours:?}, recorded {theirs:?}");
}

#[test]
fn blacklist_v1() {
    let v = recorded("blacklist_v1");
    let mut blacklist = Blacklist::default();
    for best in strings(&v["question_blacklist"]).into_iter().chain(strings(&v["answer_blacklist"])) {
        blacklist.add_best(best);
    }
    let prompt = v["prompt"].as_str().unwrap();
    let ours: Vec<f64> = strings(&v["completions"]).iter().map(|c| f64::from(blacklist.mask(prompt, c))).collect();
    near("blacklist_v1", &ours, &floats(&v["reward"]));
}

#[test]
fn task_validator_and_keywords() {
    let v = recorded("task_validator");
    let completions = strings(&v["completions"]);
    for (step, theirs) in v["v1"].as_object().unwrap() {
        let kind = TaskKind::of_step(step).unwrap();
        let ours: Vec<f64> = completions.iter().map(|c| f64::from(task_validator(kind, c))).collect();
        near(step, &ours, &floats(theirs));
    }
    for (step, theirs) in v["keyword_penalty_v2"].as_object().unwrap() {
        let kind = TaskKind::of_step(step).unwrap();
        let ours: Vec<f64> = completions.iter().map(|c| keyword_match(kind, c)).collect();
        near(step, &ours, &floats(theirs));
    }
}

#[test]
fn penalties_v2() {
    let v = recorded("penalties_v2");
    for case in v["length"].as_array().unwrap() {
        let unit = match case["unit"].as_str().unwrap() {
            "words" => Unit::Words,
            "sentences" => Unit::Sentences,
            "characters" => Unit::Characters,
            _ => Unit::Paragraphs,
        };
        let texts = strings(&case["texts"]);
        let lengths: Vec<f64> = texts.iter().map(|t| unit.count(t) as f64).collect();
        near("lengths", &lengths, &floats(&case["lengths"]));
        let target = u32::try_from(case["target"].as_u64().unwrap()).unwrap();
        let most = case["penalty"].as_f64().unwrap();
        let criterion = Criterion::Length { target, unit };
        let ours: Vec<f64> = texts.iter().map(|t| most * criterion.breach(t, 10.0)).collect();
        near("length", &ours, &floats(&case["out"]));
    }
    let texts = strings(&v["layout"]["texts"]);
    let layouts =
        [("simple_layout", Criterion::NoLists), ("unordered", Criterion::Bullets), ("numbered", Criterion::Numbers)];
    for (name, criterion) in layouts {
        let ours: Vec<f64> = texts.iter().map(|t| 0.5 * criterion.breach(t, 10.0)).collect();
        near(name, &ours, &floats(&v["layout"][name]));
    }
    let penalties = Profile::text_prompting_2_1().penalties.unwrap();
    assert_eq!(penalties.criteria.length_steepness, 10.0);
    let texts = strings(&v["content_match"]["texts"]);
    let ours: Vec<f64> = texts.iter().map(|t| content_match(t, penalties.openings)).collect();
    near("content_match", &ours, &floats(&v["content_match"]["raw"]));
    let ours: Vec<f64> = ours.iter().map(|&raw| applied(raw, penalties.content_match)).collect();
    near("applied", &ours, &floats(&v["content_match"]["applied"]));
    assert_eq!(v["max_penalty"]["task_validation"].as_f64(), Some(penalties.task_validation));
    assert_eq!(v["max_penalty"]["content_match"].as_f64(), Some(penalties.content_match));
    assert_eq!(v["max_penalty"]["keyword_match"].as_f64(), Some(penalties.keyword_match));
    assert!((applied(0.3, 0.2) - 0.8).abs() < 1e-12);
    assert_eq!(applied(f64::NAN, 1.0), 0.0);
}

/// 868 tasks and replies, each with what the own Python modules of text-prompting made of it (tests/penalties_python.md).
#[test]
fn penalties_are_those_of_the_python_modules() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/penalties_python.jsonl");
    let penalties = Profile::text_prompting_2_1().penalties.unwrap();
    let (mut n_cases, mut wrong) = (0, Vec::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let kind = TaskKind::of_step(case["step"].as_str().unwrap()).unwrap();
        let criteria: Vec<Criterion> = strings(&case["criteria"]).iter().map(|line| Criterion::parse(line)).collect();
        assert!(criteria.iter().all(|c| !matches!(c, Criterion::Other(_))), "{line}");
        let reply = case["reply"].as_str().unwrap();
        let lengths: Vec<u64> = criteria
            .iter()
            .filter_map(|c| if let Criterion::Length { unit, .. } = c { Some(unit.count(reply) as u64) } else { None })
            .collect();
        let raw = [
            penalties.criteria.penalty(kind, &criteria, reply),
            content_match(reply, penalties.openings),
            keyword_match(kind, reply),
        ];
        let most = [penalties.task_validation, penalties.content_match, penalties.keyword_match];
        let left: Vec<f64> = raw.iter().zip(most).map(|(&raw, most)| applied(raw, most)).collect();
        let near = |ours: &[f64], theirs: &Value| ours.iter().zip(floats(theirs)).all(|(a, b)| (a - b).abs() < 1e-6);
        let same_lengths = case["lengths"].as_array().unwrap().iter().map(|l| l.as_u64().unwrap()).eq(lengths.clone());
        if !same_lengths || !near(&raw, &case["raw"]) || !near(&left, &case["applied"]) {
            wrong.push(format!("{lengths:?} {raw:?} {left:?}, recorded {line}"));
        }
        n_cases += 1;
    }
    assert_eq!((n_cases, wrong.len()), (868, 0), "{}", wrong.join("\n"));
}

#[test]
fn normalise() {
    for case in recorded("normalise").as_array().unwrap() {
        let mut normaliser = Normaliser::new(3000);
        for step in case["steps"].as_array().unwrap() {
            #[expect(clippy::cast_possible_truncation, reason = "recorded as f32")]
            let scores: Vec<f32> = floats(&step["in"]).into_iter().map(|s| s as f32).collect();
            let ours: Vec<f64> = normaliser.normalise(&scores).into_iter().map(f64::from).collect();
            near(case["name"].as_str().unwrap(), &ours, &floats(&step["out"]));
            assert!((normaliser.mean() - step["mean"].as_f64().unwrap()).abs() < 1e-4);
            match step["var"].as_f64() {
                Some(variance) => assert!((normaliser.variance() - variance).abs() < 1e-3),
                None => assert!(normaliser.variance().is_nan()),
            }
            assert_eq!(normaliser.count() as u64, step["count"].as_u64().unwrap());
        }
    }
}

#[test]
fn step_v1() {
    let v = recorded("step_v1");
    let profile = Profile::openvalidators_1_2();
    let mut stack = Stack::new(&profile);
    let mut average = MovingAverage::new(12, profile.alpha);
    let scores: BTreeMap<String, Vec<f64>> =
        v["raw_scores"].as_object().unwrap().iter().map(|(k, s)| (k.clone(), floats(s))).collect();
    let mut factors: Vec<Vec<f64>> = v["masks"].as_array().unwrap().iter().map(floats).collect();
    factors.push(floats(&v["diversity"]));
    for step in v["steps"].as_array().unwrap() {
        let uids: Vec<usize> = floats(&step["uids"]).iter().map(|&u| u as usize).collect();
        let failed: Vec<usize> = floats(&step["failed_uids"]).iter().map(|&u| u as usize).collect();
        #[expect(clippy::cast_possible_truncation, reason = "recorded as f32")]
        let pick = |name: &str, all: &[f64]| Column::new(name, uids.iter().map(|&u| all[u] as f32).collect());
        let succeeded: Vec<bool> = uids.iter().map(|u| !failed.contains(u)).collect();
        let scores: Vec<Column> = scores.iter().map(|(name, all)| pick(name, all)).collect();
        let factors: Vec<Column> = factors.iter().map(|all| pick("mask", all)).collect();
        let rewards = stack.step(&succeeded, &scores, &factors).unwrap().rewards;
        let ours: Vec<f64> = rewards.iter().map(|&r| f64::from(r)).collect();
        near("rewards", &ours, &floats(&step["rewards"]));
        let pairs: Vec<(usize, f32)> = uids.into_iter().zip(rewards).collect();
        average.update(&pairs).unwrap();
        near("moving average", average.scores(), &floats(&step["moving_average"]));
    }
    near("weights", &average.weights(), &floats(&v["final_weights_l1"]));
}

#[test]
fn dpo_rewards() {
    let v = recorded("dpo");
    let limit = 48;
    let row = |t: usize| -> Vec<f32> {
        let t = t as f64 + 1.0;
        #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
        let logit = |n: u32| (3.0 * (0.37 * t * (f64::from(n) + 1.0) + 0.11 * f64::from(n)).sin()) as f32;
        (0..24).map(logit).collect()
    };
    for case in v["cases"].as_array().unwrap() {
        let (prompt, reply) = (case["prompt"].as_str().unwrap(), case["completion"].as_str().unwrap());
        let n_prompt = prompt.chars().count();
        let all: Vec<u32> = prompt.chars().chain(reply.chars()).map(|c| (c as u32 * 7) % 24).take(limit).collect();
        let rows: Vec<Vec<f32>> = (0..all.len() - 1).map(row).collect();
        let score = |rules: DpoRules| {
            if rules.too_short(reply) || n_prompt >= limit {
                return rules.lowest;
            }
            let (prompt_rows, of_reply) = rows.split_at(n_prompt - 1);
            let mut before = Moments::default();
            prompt_rows.iter().for_each(|row| before.add(row));
            rules.reward(&all[n_prompt..], of_reply, before)
        };
        let v1 = Profile::openvalidators_1_2().dpo;
        let ours = [
            score(v1),
            score(DpoRules { repetition: Repetition::Ignored, ..v1 }),
            score(Profile::text_prompting_2_1().dpo),
        ];
        let theirs = ["v1", "v1_no_penalty", "v2"].map(|key| case[key].as_f64().unwrap());
        near(reply, &ours.map(f64::from), &theirs);
    }
}

fn minilm() -> (Arc<SentenceEncoder>, WordPiece) {
    let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
    let encoder = Arc::new(SentenceEncoder::load(&dir).expect("it loads"));
    (encoder, WordPiece::from_file(dir.join("tokenizer.json")).expect("it loads"))
}

#[tokio::test]
async fn relevance() {
    let v = recorded("relevance");
    let (encoder, windows) = minilm();
    let bounds = Profile::text_prompting_2_1().relevance;
    let relevance = Relevance { bert: encoder.clone(), windows, mpnet: encoder, bounds };
    let scores = relevance.scores(v["prompt"].as_str().unwrap(), &strings(&v["completions"])).await.unwrap();
    let column = |get: fn(&idiolect_validator::mask::RelevanceScore) -> f32| -> Vec<f64> {
        scores.iter().map(|s| f64::from(get(s))).collect()
    };
    near("mpnet part", &column(|s| s.mpnet), &floats(&v["mpnet_part"]));
    near("bert part", &column(|s| s.bert), &floats(&v["bert_part"]));
    near("mask", &column(|s| s.mask), &floats(&v["reward"]));
    assert_eq!(relevance.scores("x", &[]).await.unwrap(), []);
}

/// Needs all-mpnet-base-v2, 438 MB; `IDIOLECT_E2E=1` fetches it.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "says why it skips")]
async fn relevance_mpnet() {
    let mut config = ResolverConfig::from_env();
    config.offline = std::env::var_os("IDIOLECT_E2E").is_none_or(|value| value != "1");
    let resolver = Resolver::new(config).unwrap();
    let files = match resolver.resolve(&"mpnet".parse().unwrap(), &NoProgress).await {
        Ok(files) => files,
        Err(error) => {
            println!("skipped: mpnet is not on this machine ({error}); IDIOLECT_E2E=1 fetches it");
            return;
        }
    };
    let mpnet = Arc::new(SentenceEncoder::load(&files.dir).expect("it loads"));
    let (bert, windows) = minilm();
    let v = recorded("relevance_mpnet");
    let bounds = Profile::text_prompting_2_1().relevance;
    assert_eq!(v["bound"].as_f64(), Some(0.3));
    let relevance = Relevance { bert, windows, mpnet, bounds };
    let scores = relevance.scores(v["prompt"].as_str().unwrap(), &strings(&v["completions"])).await.unwrap();
    let ours: Vec<f64> = scores.iter().map(|s| f64::from(s.mpnet)).collect();
    near("mpnet part", &ours, &floats(&v["mpnet_part"]));
}

#[test]
fn diversity_maps() {
    let v = recorded("diversity_maps");
    for profile in [Profile::openvalidators_1_2(), Profile::text_prompting_2_1()] {
        for (curve, name) in [(profile.gate.batch, "batch"), (profile.gate.historic, "historic")] {
            #[expect(clippy::cast_possible_truncation, reason = "distances are f32")]
            let ours: Vec<f64> = floats(&v["distance"]).iter().map(|&d| f64::from(curve.at(d as f32))).collect();
            near(name, &ours, &floats(&v[name]));
        }
    }
}

#[test]
fn stock_phrases_are_found() {
    let rules = Profile::text_prompting_2_1().ngram_blacklist.unwrap();
    let (_, tokenizer) = minilm();
    let mut blacklist = NgramBlacklist::new(rules, tokenizer);
    let phrase = "as far as anybody can tell today";
    for i in 0..60 {
        let (a, b) = (format!("{phrase}, number {i} is a fact."), format!("Item {i} of {} is new: {}", i * 7, i * i));
        blacklist.add([a.as_str(), b.as_str(), ""]);
    }
    // Seven words in every second completion: 1.25^6 * 0.5 * 100, with the possible error of counts.
    let top = blacklist.update().iter().find(|m| m.phrase == phrase).cloned().unwrap();
    assert!((top.significance - 1.25_f64.powi(6) * 50.0).abs() < 1e-9, "{top:?}");
    assert_eq!(blacklist.mask("p", &format!("Well, {phrase}!")), 0.0);
    assert_eq!(blacklist.mask("p", "Something else entirely, said in other terms."), 1.0);
    assert_eq!(blacklist.mask("a prompt", "prompt"), 0.0);
    assert_eq!(blacklist.mask("a prompt", ""), 0.0);
    blacklist.reset();
    assert!(blacklist.update().is_empty());
}

#[test]
fn bad_input_has_defined_results() {
    let profile = Profile::openvalidators_1_2();
    let mut stack = Stack::new(&profile);
    let models = ["dpo", "rlhf", "reciprocate"];
    let columns = |values: &[f32]| models.map(|name| Column::new(name, values.to_vec()));
    assert!(stack.step(&[], &columns(&[]), &[]).unwrap().rewards.is_empty());
    let rewards = stack.step(&[true, true], &columns(&[f32::NAN, 1.0]), &[Column::new("m", vec![1.0, f32::NAN])]);
    assert_eq!(rewards.unwrap().rewards, [0.0, 0.0]);
    let error = stack.step(&[true], &columns(&[1.0, 2.0]), &[]).unwrap_err().to_string();
    assert_eq!(error, "column dpo has 2 values, expected one for each of 1 replies");
    let error = stack.step(&[true], &columns(&[1.0])[..1], &[]).unwrap_err().to_string();
    assert_eq!(error, "no scores of the reward model reciprocate, which the profile weighs");
    let mut average = MovingAverage::new(2, 0.05);
    assert_eq!(average.weights(), [0.0, 0.0]);
    assert_eq!(average.update(&[(2, 1.0)]).unwrap_err().to_string(), "uid 2 is not below the number of miners, 2");
    average.update(&[(0, f32::NAN)]).unwrap();
    assert_eq!(average.scores(), [0.0, 0.0]);
    assert_eq!(profile.dpo.reward(&[9], &[vec![0.0; 3]], Moments::default()), -11.0);
    assert_eq!(profile.dpo.reward(&[], &[], Moments::default()), -11.0);
    let long = "word ".repeat(20_000);
    assert!(Criterion::Length { target: 0, unit: Unit::Words }.breach(&long, 10.0) == 1.0);
    assert_eq!(content_match(&long, Profile::text_prompting_2_1().penalties.unwrap().openings), 0.0);
    assert_eq!(keyword_match(TaskKind::Augment, &long), 0.0);
}

#[test]
fn partial_ratios_are_those_of_difflib() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/partial_ratio.json");
    let pairs: Vec<(String, String, u32)> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (a, b, expected) in pairs {
        assert_eq!(idiolect_validator::mask::partial_ratio(&a, &b), expected, "{a:?}, {b:?}");
    }
}

#[test]
fn published_prompts_are_read() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/openvalidators");
    for name in ["history_v1.2.0", "history_text_prompting_2.1"] {
        let lines = std::fs::read_to_string(format!("{dir}/{name}.jsonl")).unwrap();
        let mut n_read = 0;
        for line in lines.lines() {
            let step: Value = serde_json::from_str(line).unwrap();
            let (Some(prompt), Some(name)) = (step["prompt"].as_str(), step["name"].as_str()) else { continue };
            let parsed = Prompt::parse(prompt);
            assert_eq!(parsed.kind(), TaskKind::of_step(name), "{prompt}");
            if let Prompt::TextPrompting(task) = parsed {
                assert!(!task.criteria.is_empty() && task.criteria.iter().all(|c| !matches!(c, Criterion::Other(_))));
            }
            n_read += 1;
        }
        assert!(n_read > 0, "{name}");
    }
}

#[tokio::test]
async fn odd_embeddings_mask_the_reply() {
    let v = [vec![1.0, 0.0], vec![1.0, 0.0], vec![0.0, 0.0], vec![f32::NAN, 0.0]];
    let (_, windows) = minilm();
    let encoder = Arc::new(Fixed(v.to_vec()));
    let bounds = Profile::text_prompting_2_1().relevance;
    let relevance = Relevance { bert: encoder.clone(), windows, mpnet: encoder, bounds };
    let replies = ["same", "nothing", "nonsense"].map(str::to_owned);
    let masks: Vec<f32> = relevance.scores("prompt", &replies).await.unwrap().iter().map(|s| s.mask).collect();
    assert_eq!(masks, [1.0, 0.0, 0.0]);
}

/// An encoder with one answer.
#[derive(Debug)]
struct Fixed(Vec<Vec<f32>>);

#[async_trait::async_trait]
impl Embedder for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, idiolect_backend::Error> {
        Ok(self.0[..texts.len()].to_vec())
    }
}

#[tokio::test]
async fn a_backend_without_rows_is_named() {
    let model = DpoModel::new(Arc::new(Echo::new()), Profile::openvalidators_1_2().dpo);
    assert_eq!(model.name(), "dpo");
    let error = model.scores("a prompt", &["a long enough reply".to_owned()]).await.unwrap_err().to_string();
    assert!(error.ends_with("does not support scoring with rows of logits"), "{error}");
    assert_eq!(model.scores("a prompt", &["tiny".to_owned()]).await.unwrap(), [-11.0]);
}

#[tokio::test]
async fn listed_words_are_masked() {
    let words = WordList::new(["Badword"]);
    let scores = words.scores(&["A BADWORD.".to_owned(), "badwords".to_owned(), String::new()]).await.unwrap();
    let bound = Profile::text_prompting_2_1().nsfw_bound;
    assert_eq!(scores.iter().map(|&s| nsfw_mask(s, bound)).collect::<Vec<_>>(), [0.0, 1.0, 1.0]);
    assert_eq!(nsfw_mask(f32::NAN, bound), 0.0);
}

#[test]
fn counts_fade_and_are_pruned() {
    let mut rules = Profile::text_prompting_2_1().ngram_blacklist.unwrap();
    (rules.error, rules.half_life) = (0.1, 15);
    let (_, tokenizer) = minilm();
    let mut blacklist = NgramBlacklist::new(rules, tokenizer);
    blacklist.add(std::iter::repeat_n("one two three four five", 12));
    let before = blacklist.update()[0].significance;
    assert!((before - 1.25_f64.powi(4) * 100.0).abs() < 1e-9, "{before}");
    // Four more completions are 16, halved to 8; the phrase has 6 counts of the 12.
    blacklist.add(["six seven eight nine ten", "red green blue white black", "a b c d e f", "k l m n o p"]);
    let after = blacklist.update()[0].clone();
    assert_eq!(after.phrase, "one two three four five");
    assert!((after.significance - 1.25_f64.powi(4) * 100.0 * 6.0 / 8.0).abs() < 1e-9, "{after:?}");
}
