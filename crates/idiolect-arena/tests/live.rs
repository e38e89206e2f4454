//! Live experiments with stand-ins for the models: what is kept, what is made again, and what a reward is made of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idiolect_arena::live::{self, Drawn, DrawnReply, Plain, Scored, Scorer, Setup, Source, State};
use idiolect_arena::rivals::{self, SEEDS, SYSTEM_PROMPTS};
use idiolect_arena::texts::{ArenaPrompt, built_in, compose, read};
use idiolect_backend::{Echo, Embedder, Embedding, Error, HashEmbedder, Sampling};
use idiolect_validator::task::{Criterion, TaskKind, text_prompting};
use idiolect_validator::{Profile, RewardModel, StepTask};

const SETUP_SEED: u64 = 3;

fn setup() -> Setup {
    Setup {
        seed: SETUP_SEED,
        k: 2,
        timeout_s: 10.0,
        models: vec!["echo".to_owned()],
        encoder: "hash".to_owned(),
        profile: "text-prompting-2.1".to_owned(),
    }
}

fn reply(text: &str) -> DrawnReply {
    DrawnReply { text: text.to_owned(), logprob: Some(-1.5), n_tokens: 3, recipe: None }
}

fn drawn(prompt: &str, source: Source, texts: &[&str]) -> Drawn {
    Drawn {
        prompt: prompt.to_owned(),
        source,
        sent: Some(0),
        candidates: texts.iter().map(|text| reply(text)).collect(),
        latency_ms: 12.5,
        missed: false,
        error: None,
    }
}

#[tokio::test]
async fn rivals_are_made_once_and_the_same_ones_where_some_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rivals.jsonl");
    let prompts = compose(&built_in(), 2, 1);
    let (backend, sampling) = (Echo::new(), Sampling { max_tokens: 12, ..Sampling::default() });
    let mut asked = 0;
    let made = rivals::make(&backend, &sampling, &prompts, &path, 7, &mut |_, of| asked = of).await.unwrap();
    assert_eq!((made.len(), asked), (2 * SYSTEM_PROMPTS.len() * SEEDS, 8));
    assert_eq!((made[0].name.as_str(), made[39].name.as_str()), ("rival-1#1", "rival-4#5"));
    let whole = std::fs::read_to_string(&path).unwrap();
    // The file is one of recorded replies.
    assert_eq!(idiolect_arena::Replies::open(&path).unwrap().by_prompt().len(), 2);

    let again = rivals::make(&backend, &sampling, &prompts, &path, 7, &mut |_, of| asked = of).await.unwrap();
    assert_eq!((again, asked), (made, 0));
    // Cut within the third reply of a request: the request is made again, and what is there stays as it is.
    let kept: Vec<&str> = whole.lines().take(22).collect();
    std::fs::write(&path, format!("{}\n{}", kept.join("\n"), &whole.lines().nth(22).unwrap()[..20])).unwrap();
    rivals::make(&backend, &sampling, &prompts, &path, 7, &mut |_, of| asked = of).await.unwrap();
    assert_eq!((std::fs::read_to_string(&path).unwrap(), asked), (whole, 4));
}

#[tokio::test]
async fn plain_samples_are_the_seeds_and_the_likeliest_is_sent() {
    let prompts = compose(&built_in(), 1, 1);
    let sampling = Sampling { max_tokens: 30, ..Sampling::default() };
    let wish = Plain { n: 4, seed: 5, timeout: Duration::from_secs(60), margin: Duration::from_millis(500) };
    let draw = async |wish| live::plain(&Echo::new(), &sampling, &prompts[0], Source::BestOfK, wish).await;
    let first = draw(wish).await;
    assert_eq!((first.candidates.len(), first.missed, &first.error), (4, false, &None));
    let logprobs: Vec<f32> = first.candidates.iter().filter_map(|candidate| candidate.logprob).collect();
    let likeliest = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(first.candidates[first.sent.unwrap()].logprob, Some(likeliest));
    assert_eq!(draw(wish).await.candidates, first.candidates);
    assert_ne!(draw(Plain { seed: 6, ..wish }).await.candidates, first.candidates);

    let slow = Echo::with_delay(Duration::from_secs(600));
    let wish = Plain { timeout: Duration::from_millis(20), margin: Duration::ZERO, ..wish };
    let late = live::plain(&slow, &sampling, &prompts[0], Source::Plain, wish).await;
    assert!(late.missed && late.sent.is_none());
}

#[test]
fn a_state_goes_on_where_it_broke_off_and_with_its_own_run_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.jsonl");
    let mut state = State::open(Some(&path), &setup()).unwrap();
    let (first, second) = (drawn("a", Source::Plain, &["x"]), drawn("a", Source::Pipeline, &["y", "z"]));
    state.keep(first.clone()).unwrap();
    state.keep(second).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let state = State::open(Some(&path), &setup()).unwrap();
    assert_eq!((state.drawn("a", Source::Plain), state.drawn("a", Source::Pipeline)), (Some(&first), None));
    assert!(whole.starts_with(&std::fs::read(&path).unwrap()));

    let refused = |setup: Setup| State::open(Some(&path), &setup).map(drop).unwrap_err().to_string();
    assert!(refused(Setup { seed: 4, ..setup() }).contains("seed is 3 there, expected 4"));
    assert!(refused(Setup { k: 9, ..setup() }).contains("k is 2 there, expected 9"));
    assert!(refused(Setup { models: vec!["m".to_owned()], ..setup() }).contains("model is echo there, expected m"));
    std::fs::write(&path, &whole[whole.iter().position(|b| *b == b'\n').unwrap() + 1..]).unwrap();
    assert!(refused(setup()).contains("expected a state of this command"));
    assert!(State::open(None, &setup()).unwrap().drawn("a", Source::Plain).is_none());
}

/// Says that longer replies are better, and counts them.
#[derive(Debug, Default)]
struct Longer(AtomicUsize);

#[async_trait::async_trait]
impl RewardModel for Longer {
    fn name(&self) -> &str {
        "dpo"
    }

    async fn scores(&self, _: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        self.0.fetch_add(replies.len(), Ordering::SeqCst);
        Ok(replies.iter().map(|reply| reply.len() as f32 / 100.0 - 5.0).collect())
    }
}

/// Texts with the same first word lie together.
#[derive(Debug)]
struct FirstWord(HashEmbedder);

#[async_trait::async_trait]
impl Embedder for FirstWord {
    fn name(&self) -> &str {
        "first-word"
    }

    fn dimensions(&self) -> usize {
        self.0.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.0.max_tokens()
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        let first = |text: &String| text.split_whitespace().next().unwrap_or_default().to_owned();
        self.0.embed(&texts.iter().map(first).collect::<Vec<_>>()).await
    }
}

#[tokio::test]
async fn rewards_are_those_of_the_validators_arithmetic_and_kept() {
    let prompt = |id: &str| ArenaPrompt {
        id: id.to_owned(),
        prompt: "Tides and what they are.".to_owned(),
        task: Some("augment".to_owned()),
        base_text: None,
    };
    let prompts = read(vec![prompt("a"), prompt("b")]).unwrap();
    let own = [
        "Tides rise and fall.",
        "Summary: of it all.",
        "Gravel has nothing to do with it.",
        "Harbours fill and empty.",
    ];
    let rivals = ["Tides come and go.", "Harbours are full.", "Nobody knows."];
    let scored: Vec<Scored> = prompts
        .iter()
        .map(|(prompt, task)| Scored {
            prompt: prompt.id.clone(),
            task: task.clone(),
            rivals: rivals.map(str::to_owned).to_vec(),
            own: own.map(str::to_owned).to_vec(),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.jsonl");
    // Any two texts are alike enough to be relevant.
    let profile = "extends = \"text-prompting-2.1\"\n[relevance]\nbert = -1.0\nmpnet = 0.0\n";
    let model = Arc::new(Longer::default());
    let prepare = async |state: &mut State| {
        let encoder = Arc::new(FirstWord(HashEmbedder::default()));
        let profile = Profile::from_toml(profile).unwrap();
        Scorer::prepare(profile, encoder, model.clone(), &scored, Some(dir.path()), state, &mut |_, _, _| {})
            .await
            .unwrap()
    };
    let scorer = prepare(&mut State::open(Some(&path), &setup()).unwrap()).await;
    // Both prompts have the same text, so its replies are scored once.
    assert_eq!(model.0.load(Ordering::SeqCst), own.len() + rivals.len());
    let scorer_again = prepare(&mut State::open(Some(&path), &setup()).unwrap()).await;
    assert_eq!(model.0.load(Ordering::SeqCst), own.len() + rivals.len());

    let of = async |scorer: &Scorer, own: Option<usize>| scorer.outcomes(&scored, &|_| own).await.unwrap();
    let masked = of(&scorer, Some(0)).await;
    assert!(masked.iter().all(|outcome| outcome.masked && outcome.reward == 0.0 && outcome.quality > 0.0));
    assert_eq!(masked[0].logprob, Some(f64::from(own[0].len() as f32 / 100.0 - 5.0)));
    assert_eq!(masked, of(&scorer_again, Some(0)).await);
    let free = of(&scorer, Some(2)).await;
    assert!(free.iter().all(|o| !o.masked && o.reward > 0.0 && (o.reward - o.quality).abs() < 1e-6), "{free:?}");
    // A step's own label costs nothing in a summary; an unknown reply is no reply.
    let nothing = of(&scorer, None).await;
    assert!(nothing.iter().all(|o| o.reward == 0.0 && o.logprob.is_none() && !o.masked && !o.irrelevant));
    assert_eq!(scorer.logprob(&scored[0], 3), Some(own[3].len() as f32 / 100.0 - 5.0));
    assert_eq!(scorer.logprob(&scored[0], 9), None);
    let chance: Vec<Option<usize>> = ["a", "b", "c", "d"].map(|id| live::at_random(1, id, 3)).to_vec();
    assert!(chance.iter().all(|i| i.is_some_and(|i| i < 3)) && live::at_random(1, "a", 0).is_none());
}

#[tokio::test]
async fn criteria_cost_what_the_validator_says() {
    let task = text_prompting::Task {
        kind: TaskKind::Augment,
        base_text: "A text about rivers. They flow to the sea.".to_owned(),
        criteria: vec![Criterion::NoQuestionMarks, Criterion::Bullets],
    };
    let task = StepTask::read(&task.compose(), None).unwrap();
    let profile = Profile::find("text-prompting-2.1").unwrap();
    let replies = ["- Rivers flow to the sea.", "Rivers flow to the sea.", "Where do rivers flow?"];
    let taken = live::criteria(&profile, &task, &replies).await.unwrap();
    let penalties = profile.penalties.as_ref().unwrap();
    for (reply, taken) in replies.iter().zip(&taken) {
        let raw = penalties.criteria.penalty(task.kind, &task.criteria, reply);
        assert!((taken - raw.min(penalties.task_validation)).abs() < 1e-6, "{reply}: {taken}");
    }
    assert!(taken[0] == 0.0 && taken[1] > 0.0 && taken[2] > taken[1], "{taken:?}");
    let historic = Profile::find("openvalidators-1.2").unwrap();
    assert_eq!(live::criteria(&historic, &task, &replies).await.unwrap(), [0.0; 3], "it has no penalties");
    assert_eq!(live::penalties(&historic, &task, &replies).await.unwrap(), [0.0; 3]);
    // A label takes all, a stock opening a tenth of what the criteria leave.
    let more = ["- Answer: to the sea.", "Use complete sentences: rivers flow.", "- Rivers flow to the sea."];
    let all = live::penalties(&profile, &task, &more).await.unwrap();
    let left = (1.0 - taken[1]) * 0.9;
    assert!(
        (all[0] - 1.0).abs() < 1e-6 && (all[1] - (1.0 - left)).abs() < 1e-6 && all[2].abs() < 1e-6,
        "{all:?} {taken:?}"
    );
}
