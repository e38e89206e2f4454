//! Every figure of a profile counts: with another one, some step comes out differently.

mod support;

use std::fmt::Write as _;
use std::sync::Arc;

use idiolect_backend::Embedder as _;
use idiolect_uniqueness::report::{self, Report};
use idiolect_uniqueness::{
    Candidate, GateHistory, GateProfile, Population, ReplyHistory, Selector, SelectorConfig, StoredReply,
};
use idiolect_validator::mask::{NsfwClassifier, WordPiece};
use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
use idiolect_validator::{BertPart, DpoModel, Missing, Models, Profile, Reply, StepTask, Validator};
use support::{Lengths, Rows, Words};
use toml::{Table, Value};

/// An nsfw score that lies on both sides of the bound.
#[derive(Debug)]
struct Mildness;

#[async_trait::async_trait]
impl NsfwClassifier for Mildness {
    async fn scores(&self, texts: &[String]) -> Result<Vec<f32>, idiolect_backend::Error> {
        Ok(texts.iter().map(|text| -0.3 - (text.len() * 7 % 61) as f32 * 0.01).collect())
    }
}

/// What makes large figures count within a few steps.
const SMALL: &str = "
normaliser_count_limit = 20
[relevance]
bert = -0.17
[gate]
history_skip = 3
history_keep = 14
historic = { slope = 30.0, offset = 3.0 }
";
const SMALL_2_1: &str = "
followup_words = 6
[penalties]
task_validation = 0.3
[penalties.openings]
characters = 60
[ngram_blacklist]
n_min = 3
n_max = 4
token_limit = 14
partial_ratio_boundary = 80
boundary = 60.0
error = 0.2
support = 0.3
half_life = 17
memory_limit = 150
";

fn tasks() -> Vec<StepTask> {
    let task = |kind, criteria| {
        let base_text = "Leaves make sugar out of light and water in the morning sun.".to_owned();
        StepTask::read(&text_prompting::Task { kind, base_text, criteria }.compose(), None).unwrap()
    };
    let length = |target| Criterion::Length { target, unit: Unit::Words };
    vec![
        task(TaskKind::Augment, vec![Criterion::NoLists, length(9)]),
        task(TaskKind::Followup, vec![Criterion::EndsWithQuestionMark, length(5)]),
        task(TaskKind::Answer, vec![Criterion::Bullets]),
        task(TaskKind::Answer, vec![Criterion::NoQuestionMarks]),
        task(TaskKind::Augment, vec![length(12)]),
    ]
}

fn replies(step: usize) -> Vec<Reply> {
    let own = ["sugar", "light", "water", "sun", "leaves"][step % 5];
    let texts = [
        format!("Leaves make {own} out of light and water, as far as anybody knows."),
        format!("Out of light and water leaves make {own}, as far as anybody knows by now in the {own} morning."),
        format!("- In the morning the {own} makes light. As far as anybody knows it is water?"),
        format!("Sure! Here is the {own} of leaves. Use complete sentences. Light, as far as anyone knows."),
        format!("Sugar water {own} leaves sun {own}, {own}. Answer: water and light."),
        "a a a a a a b a a a a a c".to_owned(),
        format!("sun {step}"),
        "Leaves bought water and light, water and light".to_owned(),
        "As far as anybody knew, leaves make light. Water makes sugar. What of it, leaves?".to_owned(),
    ];
    (0..).zip(texts).map(|(uid, text)| Reply::new(uid, text)).collect()
}

async fn run(profile: &Profile, windows: &WordPiece) -> String {
    let models = Models {
        rewards: vec![
            Arc::new(DpoModel::new(Arc::new(Rows::new(false)), profile.dpo)),
            Arc::new(Lengths("rlhf")),
            Arc::new(Lengths("reciprocate")),
        ],
        encoder: Some(Arc::new(Words)),
        bert: Some(BertPart { encoder: Arc::new(Words), windows: windows.clone() }),
        nsfw: Some(Arc::new(Mildness)),
        ngrams: Some(windows.clone()),
    };
    let mut validator = Validator::new(profile.clone(), models, Missing::Refuse).unwrap();
    let mut log = String::new();
    for step in 0..10 {
        let tasks = tasks();
        let report = validator.step(&tasks[step % tasks.len()], &replies(step)).await.unwrap();
        writeln!(log, "{:?} {:?}", report.log_columns(), report.moving_average).unwrap();
    }
    log
}

/// The paths of all numbers in a table.
fn numbers(table: &Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Table(inner) => numbers(inner, &path, found),
            Value::Float(_) | Value::Integer(_) => found.push(path),
            _ => {}
        }
    }
}

fn at<'a>(table: &'a mut Table, path: &str) -> &'a mut Value {
    let mut parts = path.split('.');
    let first = parts.next().unwrap();
    parts.fold(table.get_mut(first).unwrap(), |value, part| value.get_mut(part).unwrap())
}

fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// Another figure that is allowed; weights move between two models.
fn change(table: &mut Table, path: &str) {
    if path.starts_with("rewards.") {
        let other = if path == "rewards.dpo" { "rewards.reciprocate" } else { "rewards.dpo" };
        for (path, by) in [(path, 0.1), (other, -0.1)] {
            let value = at(table, path);
            *value = Value::Float(value.as_float().unwrap() + by);
        }
        return;
    }
    let value = at(table, path);
    *value = match (&*value, path) {
        (Value::Integer(n), "ngram_blacklist.n_min" | "ngram_blacklist.half_life" | "gate.batch_rank") => {
            Value::Integer(n + 1)
        }
        (Value::Integer(n), "ngram_blacklist.n_max") => Value::Integer(n - 1),
        (Value::Integer(n), "ngram_blacklist.partial_ratio_boundary") => Value::Integer(n + 10),
        (Value::Integer(n), "ngram_blacklist.memory_limit") => Value::Integer(n / 8),
        (Value::Integer(n), "ngram_blacklist.token_limit" | "penalties.openings.characters") => Value::Integer(n / 2),
        (Value::Integer(n), _) => Value::Integer(n - 1),
        (Value::Float(x), "relevance.mpnet") => Value::Float(x * 2.0),
        (Value::Float(x), "ngram_blacklist.boundary" | "ngram_blacklist.support" | "gate.pass_above") => {
            Value::Float(x * 3.0)
        }
        (Value::Float(x), _) => Value::Float(x * 0.7),
        (other, _) => panic!("{path} is {other:?}"),
    };
}

#[tokio::test]
async fn each_figure_changes_the_result() {
    let (_, windows) = support::minilm();
    for (version, more) in [("openvalidators-1.2", ""), ("text-prompting-2.1", SMALL_2_1)] {
        let mut base: Table = toml::from_str(Profile::built_in_toml(version).unwrap()).unwrap();
        overlay(&mut base, toml::from_str(SMALL).unwrap());
        overlay(&mut base, toml::from_str(more).unwrap());
        let read = |table: &Table| Profile::from_toml(&toml::to_string(table).unwrap()).unwrap();
        let expected = run(&read(&base), &windows).await;
        assert_eq!(run(&read(&base), &windows).await, expected);
        let mut paths = Vec::new();
        numbers(&base, "", &mut paths);
        assert!(paths.len() > 15, "{paths:?}");
        let mut idle = Vec::new();
        for path in paths {
            let mut changed = base.clone();
            change(&mut changed, &path);
            if run(&read(&changed), &windows).await == expected {
                idle.push(path);
            }
        }
        // A product is not cut: the figure is for those who ask what would pass.
        let none: &[&str] = if version == "openvalidators-1.2" { &["gate.pass_above"] } else { &[] };
        assert_eq!(idle, none, "{version}");
    }
}

/// Embeddings at various distances from each other; the last are alike.
fn embeddings(n: usize) -> Vec<Vec<f32>> {
    let angle = |i: usize| i as f32 * 0.45 + (i * i % 7) as f32 * 0.031;
    (0..n).map(|i| vec![angle(i).cos(), angle(i).sin(), 0.1 * (i % 3) as f32]).collect()
}

fn report(gate: &GateProfile) -> String {
    let embeddings = embeddings(24);
    let reply = |i: usize| report::Reply { id: "", text: "a reply", embedding: &embeddings[i] };
    let mut history = GateHistory::new(gate, 3);
    let mut earlier = embeddings[4..].to_vec();
    // The last one that is kept and not compared with, and the first one that is.
    earlier[8].clone_from(&embeddings[1]);
    earlier[9].clone_from(&embeddings[2]);
    history.push_batch(&earlier);
    let replies: Vec<_> = (0..4).map(reply).collect();
    let others: Vec<_> = (20..22).map(reply).collect();
    format!("{:?}", Report::new(gate, &replies, &others, Some(&history)).rows)
}

fn selection(gate: &GateProfile) -> String {
    let embeddings = embeddings(12);
    let candidate = |i: usize| Candidate {
        embedding: Some(embeddings[i].as_slice()),
        quality: 0.5,
        source: "m",
        distinctiveness: None,
    };
    let candidates: Vec<_> = (0..4).map(candidate).collect();
    let history = ReplyHistory::in_memory("e", 3, 100);
    for (i, embedding) in embeddings.iter().enumerate().skip(4) {
        history.remember(&StoredReply {
            reply_id: i.to_string(),
            part: 0,
            caller: String::new(),
            prompt_hash: "another".to_owned(),
            encoder: "e".to_owned(),
            embedding: embedding.clone(),
            text: None,
            time_ms: 0,
        });
    }
    let population = Population::new("e").with_history(&history, "p").unwrap();
    let config = SelectorConfig { profile: gate.clone(), ..SelectorConfig::default() };
    format!("{:?}", Selector::new(config).select(&candidates, &population).unwrap())
}

#[test]
fn each_figure_of_the_gate_changes_reports_and_selections() {
    for (version, idle_in_reports) in [("openvalidators-1.2", &["gate.pass_above"][..]), ("text-prompting-2.1", &[])] {
        let mut base: Table = toml::from_str(Profile::built_in_toml(version).unwrap()).unwrap();
        overlay(&mut base, toml::from_str(SMALL).unwrap());
        // So steep that a reply passes the bound of the mask, and not three times the bound.
        overlay(&mut base, toml::from_str("gate.historic.slope = 60.0").unwrap());
        let gate = |table: &Table| Profile::from_toml(&toml::to_string(table).unwrap()).unwrap().gate;
        let mut paths = Vec::new();
        numbers(&base, "", &mut paths);
        paths.retain(|path| path.starts_with("gate."));
        assert_eq!(paths.len(), 9, "{paths:?}");
        let idle = |of: fn(&GateProfile) -> String| -> Vec<String> {
            let expected = of(&gate(&base));
            let is_idle = |path: &&String| {
                let mut changed = base.clone();
                change(&mut changed, path);
                of(&gate(&changed)) == expected
            };
            paths.iter().filter(is_idle).cloned().collect()
        };
        assert_eq!(idle(report), idle_in_reports, "{version}");
        // A miner has its own earlier replies and not the validator's history, of which these count some.
        let idle_in_selections = ["gate.history_keep", "gate.history_skip"];
        assert_eq!(idle(selection), idle_in_selections, "{version}");
    }
}

#[tokio::test]
async fn reports_and_steps_agree_on_which_neighbour_counts() {
    let texts = ["Leaves make sugar.", "Leaves make sugar.", "Water is wet.", "The sun shines in the morning."];
    let profile = Profile::from_toml("extends = \"text-prompting-2.1\"\n[gate]\nbatch_rank = 2\n").unwrap();
    let embedded = Words.embed(&texts.map(str::to_owned)).await.unwrap();
    let replies: Vec<_> =
        texts.iter().zip(&embedded).map(|(text, embedding)| report::Reply { id: text, text, embedding }).collect();
    let report = Report::new(&profile.gate, &replies, &[], None);

    let models = Models { encoder: Some(Arc::new(Words)), ..Models::default() };
    let mut validator = Validator::new(profile, models, Missing::LeaveOut).unwrap();
    let replies: Vec<_> = (0..).zip(texts).map(|(uid, text)| Reply::new(uid, text)).collect();
    let step = validator.step(&tasks()[0], &replies).await.unwrap();
    let masks: Vec<f32> = report.rows.iter().map(|row| f32::from(u8::from(!row.masked))).collect();
    assert_eq!(step.factor("diversity").unwrap().applied, masks);
    let raw: Vec<_> = report.rows.iter().map(|row| Some(row.reward)).collect();
    assert_eq!(step.factor("diversity").unwrap().raw, raw);
    assert!(masks[..2] == [1.0, 1.0], "one equal reply is free: {report:?}");
}
