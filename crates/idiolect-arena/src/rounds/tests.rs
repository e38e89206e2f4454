use std::sync::Mutex;

use idiolect_backend::{Error, HashEmbedder};
use idiolect_dataset::{Entry, History};
use idiolect_validator::{Missing, Models, Profile, RewardModel};

use super::*;
use crate::texts::built_in;
use crate::verify::Verifier;

/// Longer replies are better.
#[derive(Debug)]
struct Longest;

#[async_trait::async_trait]
impl RewardModel for Longest {
    fn name(&self) -> &str {
        "dpo"
    }

    async fn scores(&self, _: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        Ok(replies.iter().map(|reply| reply.len() as f32).collect())
    }
}

/// Says the same words to everything, with the number of the call, after a while.
#[derive(Debug)]
struct Says {
    name: &'static str,
    text: &'static str,
    after: Duration,
    status: u16,
    heard: Mutex<Vec<String>>,
}

impl Says {
    fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, after: Duration::from_millis(1500), status: 200, heard: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl Miner for Says {
    fn name(&self) -> &str {
        self.name
    }

    async fn ask(&self, prompt: &str, _: Duration) -> Asked {
        tokio::time::sleep(self.after).await;
        let mut heard = self.heard.lock().unwrap();
        heard.push(prompt.to_owned());
        let text = format!(" {} {}.", self.text, heard.len());
        Asked { text, status: self.status, message: "so".to_owned(), time: self.after }
    }
}

fn validator(profile: Profile) -> Validator {
    let models = Models {
        rewards: vec![Arc::new(Longest)],
        encoder: Some(Arc::new(HashEmbedder::new(64))),
        ..Models::default()
    };
    Validator::new(profile, models, Missing::LeaveOut).unwrap()
}

fn miners() -> [Arc<Says>; 5] {
    let slow = Says { after: Duration::from_secs(60), ..Says::new("slow", "never heard") };
    let refusing = Says { status: 403, ..Says::new("refusing", "you are not let in") };
    [
        Says::new("short", "Moss is green"),
        Says::new("long", "Why do lamps, of which there are many kinds, need so little oil in this account of them"),
        slow,
        refusing,
        Says::new("twin", "Moss is green"),
    ]
    .map(Arc::new)
}

async fn played(profile: Profile, n_rounds: usize) -> (TestValidator, Vec<StepDone>, String, [Arc<Says>; 5]) {
    let miners = miners();
    let all = miners.iter().map(|miner| miner.clone() as Arc<dyn Miner>).collect();
    let mut loops = TestValidator::new(validator(profile), all, built_in(), RoundRules::default()).unwrap();
    let (mut steps, mut log) = (Vec::new(), String::new());
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut clock = Clock { run: "test".to_owned(), row: 0, began, now: began };
    for _ in 0..n_rounds {
        loops
            .round(&mut |loops, step| {
                clock.now += Duration::from_secs(15);
                log += &(step_row(loops, step, &clock).to_string() + "\n");
                steps.push(step.clone());
                clock.row += 1;
            })
            .await
            .unwrap();
        log += &(state_row(&loops, &clock).to_string() + "\n");
        clock.row += 1;
    }
    (loops, steps, log, miners)
}

use std::time::SystemTime;

#[tokio::test(start_paused = true)]
async fn the_best_reply_of_a_step_is_what_the_next_prompts_are_about() {
    for (profile, names) in [
        (
            Profile::text_prompting_2_1(),
            &["augment", "followup0", "answer0", "followup1", "answer1", "followup2", "answer2"][..],
        ),
        (
            Profile::openvalidators_1_2(),
            &[
                "augment",
                "followup0",
                "answer0",
                "followup1",
                "answer1",
                "followup2",
                "answer2",
                "followup3",
                "answer3",
            ][..],
        ),
    ] {
        let (_, steps, _, miners) = played(profile, 1).await;
        let found: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(found, names);
        // Whoever says most, unlike all others, is quoted: in questions and answers the summary, in answers the question, too.
        let long = "Why do lamps, of which there are many kinds, need so little oil in this account of them";
        assert_eq!(steps[0].best, format!("{long} 1."));
        for step in &steps[1..] {
            assert!(step.task.prompt.contains(&steps[0].best), "{}", step.task.prompt);
        }
        for pair in steps[1..].chunks(2) {
            assert_eq!(pair[0].task.kind, TaskKind::Followup);
            assert!(pair[1].task.prompt.contains(&pair[0].best), "{}", pair[1].task.prompt);
            assert_eq!(pair[1].task.kind, TaskKind::Answer);
        }
        let heard = miners[0].heard.lock().unwrap();
        assert_eq!(*heard, steps.iter().map(|step| step.task.prompt.clone()).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_late_refuses_or_repeats_earns_nothing() {
    let (loops, steps, _, _) = played(Profile::text_prompting_2_1(), 2).await;
    let [short, long, slow, refusing, twin] = loops.records() else { panic!() };
    assert!(loops.records().iter().all(|record| record.asked == 14));
    assert_eq!((slow.failed, slow.timed_out, slow.rewards), (14, 14, 0.0));
    assert_eq!((refusing.failed, refusing.timed_out, refusing.rewards), (14, 0, 0.0));
    // Equal replies mask each other.
    assert_eq!((short.masked, twin.masked, long.masked), (14, 14, 0));
    assert!(long.mean_reward() > 0.0 && short.mean_reward() == 0.0);
    assert!(long.place_mean() < short.place_mean() && (1.0..=5.0).contains(&long.place_mean()));
    assert_eq!(short.place_mean(), twin.place_mean());
    assert_eq!((long.time(0.5), slow.time(0.5), slow.masked_share()), (1.5, 0.0, 0.0));
    for step in &steps {
        let of = |uid: usize| &step.asked[step.uids.iter().position(|&other| other == uid).unwrap()];
        assert_eq!((of(2).status, of(2).text.as_str(), of(2).time), (408, "", Duration::from_secs(10)));
        assert_eq!((of(3).status, of(3).text.as_str()), (403, ""));
    }
    let average = loops.validator().average();
    assert!(average.scores()[1] > 0.0 && average.scores()[0] == 0.0);
    assert!((average.weights()[1] - 1.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn the_log_is_one_that_validators_would_write() {
    for (profile, n_fields, n_steps) in
        [(Profile::openvalidators_1_2(), 30, 18), (Profile::text_prompting_2_1(), 47, 14)]
    {
        let name = profile.name.clone();
        let (_, steps, log, _) = played(profile, 2).await;
        let first: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let own = first.keys().filter(|key| !key.starts_with('_') && *key != "run_id").count();
        assert_eq!(own, n_fields, "{:?}", first.keys());
        let mut verifier = Verifier::new(1e-4);
        let mut history = History::of_json_lines("log", log.as_bytes());
        let mut nth = 0;
        for entry in history.by_ref() {
            let entry = entry.unwrap();
            if let Entry::Step(read) = &entry {
                assert_eq!((read.generation.profile(), &read.name), (name.as_str(), &steps[nth].name));
                assert_eq!(read.prompt, steps[nth].task.prompt);
                assert_eq!(read.best.as_deref(), Some(steps[nth].best.as_str()));
                let rewards: Vec<f64> = read.calls.iter().map(|call| call.reward.unwrap()).collect();
                let expected = steps[nth].report.rewards.as_ref().unwrap();
                assert!(rewards.iter().zip(expected).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-6));
                nth += 1;
            }
            verifier.take(&entry).await.unwrap();
        }
        assert_eq!((nth, history.counts().states, history.counts().broken), (n_steps, 2, 0));
        // What was logged is what the arithmetic gives, the moving averages and the models' statistics included.
        let checks = verifier.checks();
        for figure in
            ["rewards", "neuron_weights", "dpo_reward_model_normalized", "best", "diversity_reward_model_normalized"]
        {
            let check =
                checks.iter().find(|check| check.figure == figure).unwrap_or_else(|| panic!("{figure}: {checks:?}"));
            assert!(check.n > 0, "{check:?}");
        }
        for check in checks {
            assert_eq!(check.n_off, 0, "{check:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn batches_and_rounds_are_the_seeds() {
    let play = async |seed: u64| {
        let all = miners().map(|miner| miner as Arc<dyn Miner>).to_vec();
        let rules = RoundRules { batch: 2, followups: Some(1), seed, ..RoundRules::default() };
        let mut loops = TestValidator::new(validator(Profile::text_prompting_2_1()), all, built_in(), rules).unwrap();
        let mut steps = Vec::new();
        loops.round(&mut |_, step| steps.push((step.uids.clone(), step.task.prompt.clone()))).await.unwrap();
        steps
    };
    let (one, other) = (play(1).await, play(2).await);
    assert_eq!(one, play(1).await);
    assert_ne!(one, other);
    assert!(one.len() == 3 && one.iter().all(|(uids, _)| uids.len() == 2 && uids[0] != uids[1]));
}

#[test]
fn rounds_that_cannot_be_are_refused() {
    let one = || vec![Arc::new(EchoMiner::new("echo")) as Arc<dyn Miner>];
    let new =
        |validator, miners, texts, rules| TestValidator::new(validator, miners, texts, rules).unwrap_err().to_string();
    let ours = || validator(Profile::text_prompting_2_1());
    assert_eq!(new(ours(), vec![], built_in(), RoundRules::default()), "there are no miners");
    assert_eq!(new(ours(), one(), vec![], RoundRules::default()), "there are no texts");
    let nobody = RoundRules { batch: 0, ..RoundRules::default() };
    assert_eq!(new(ours(), one(), built_in(), nobody), "a batch of 0 miners, expected at least 1");
    let without = Validator::new(Profile::text_prompting_2_1(), Models::default(), Missing::LeaveOut).unwrap();
    let said = new(without, one(), built_in(), RoundRules::default());
    assert_eq!(said, "no reward model, expected one that the profile text-prompting-2.1 weighs");
}
