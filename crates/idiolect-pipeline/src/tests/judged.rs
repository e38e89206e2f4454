use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idiolect_backend::Error;
use idiolect_validator::RewardModel;
use tokio::time::Instant;

use super::double::{OTHER, SKY, Scripted, ask, config, parts, says};
use crate::{Ask, Parts, Pipeline, PipelineConfig};

/// Takes longer texts for better ones, and the prompt for the one that it was told; or fails.
#[derive(Debug, Default)]
struct Longer {
    wait: Duration,
    /// What is wrong with it.
    fault: Option<Fault>,
    n_asked: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Error,
    TooFew,
    NoNumber,
}

#[async_trait]
impl RewardModel for Longer {
    fn name(&self) -> &str {
        "longer"
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        assert_eq!(prompt, "Why is the sky blue?");
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.wait).await;
        let mut scores: Vec<f32> = replies.iter().map(|reply| reply.len() as f32).collect();
        match self.fault {
            Some(Fault::Error) => return Err(Error::InvalidRequest("broken".to_owned())),
            Some(Fault::TooFew) => drop(scores.pop()),
            Some(Fault::NoNumber) => scores.fill(f32::NAN),
            None => {}
        }
        Ok(scores)
    }

    fn lowest(&self) -> Option<f32> {
        Some(0.0)
    }
}

async fn start(judge: &Arc<Longer>, texts: &[&str]) -> Pipeline {
    let reward: Arc<dyn RewardModel> = Arc::<Longer>::clone(judge);
    let says = texts.iter().map(|text| says(text)).collect();
    let config = PipelineConfig { recipes: 1, ..config(texts.len()) };
    Pipeline::start(config, Parts { reward: Some(reward), ..parts(Scripted::new(says)) }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_reward_model_decides_among_candidates_that_clear_the_gate() {
    for texts in [[SKY, OTHER], [OTHER, SKY]] {
        let judge = Arc::default();
        let answer = start(&judge, &texts).await.answer(ask()).await.unwrap();
        let best = if SKY.len() > OTHER.len() { SKY } else { OTHER };
        assert_eq!(answer.reply.completions, [best]);
        let record = &answer.provenance;
        assert_eq!(record.reward_model.as_deref(), Some("longer"));
        for candidate in &record.candidates {
            let reward = candidate.quality.reward.unwrap();
            let text = candidate.text.as_deref().unwrap();
            assert_eq!(reward.raw, Some(text.len() as f32));
            assert_eq!(candidate.quality.likelihood, reward.normalised);
            assert_eq!(reward.normalised > 0.5, text == best);
        }
        assert!(record.to_string().contains(&format!("reward {}.00 (0.", best.len())), "{record}");
        let read: crate::Provenance = serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap();
        assert_eq!(read.candidates, record.candidates);
    }
}

#[tokio::test(start_paused = true)]
async fn without_rewards_the_reply_comes_all_the_same_and_says_why() {
    let slow = Longer { wait: Duration::from_secs(3600), ..Longer::default() };
    for (judge, why) in [
        (Longer { fault: Some(Fault::Error), ..Longer::default() }, "the reward model failed"),
        (Longer { fault: Some(Fault::TooFew), ..Longer::default() }, "the reward model failed"),
        (slow, "there was no time"),
    ] {
        let pipeline = start(&Arc::new(judge), &[SKY, OTHER]).await;
        let started = Instant::now();
        let answer = pipeline.answer(Ask { timeout: Duration::from_secs(5), ..ask() }).await.unwrap();
        assert!(started.elapsed() <= Duration::from_secs(5), "{:?}", started.elapsed());
        let record = answer.provenance;
        assert_eq!((record.reward_model, record.reason.as_str()), (None, "best_that_clears"));
        let note = format!("chosen without rewards by longer: {why}");
        assert_eq!(record.notes, [note]);
        assert!(record.candidates.iter().all(|candidate| candidate.quality.reward.is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn scores_that_are_no_numbers_are_the_worst_and_kept_as_none() {
    let judge = Arc::new(Longer { fault: Some(Fault::NoNumber), ..Longer::default() });
    let record = start(&judge, &[SKY, OTHER]).await.answer(ask()).await.unwrap().provenance;
    for candidate in &record.candidates {
        assert_eq!(candidate.quality.reward.map(|reward| (reward.raw, reward.normalised)), Some((None, 0.0)));
    }
    let read: crate::Provenance = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(read.candidates, record.candidates);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_too_slow_is_soon_left_alone_and_takes_no_time_from_generation() {
    let judge = Arc::new(Longer { wait: Duration::from_secs(60), ..Longer::default() });
    let pipeline = start(&judge, &[SKY, OTHER]).await;
    let mut reserves = Vec::new();
    for _ in 0..8 {
        let timeout = Duration::from_secs(10);
        reserves.push(pipeline.answer(Ask { timeout, ..ask() }).await.unwrap().provenance.timings.reserve_ms);
    }
    assert!(judge.n_asked.load(Ordering::SeqCst) <= 4, "{judge:?}");
    assert!(reserves[7] < reserves[0], "nothing is set aside for what would not be done: {reserves:?}");
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_choice_nobody_is_asked() {
    let judge = Arc::new(Longer::default());
    let pipeline = start(&judge, &[SKY, SKY]).await;
    assert_eq!(pipeline.answer(ask()).await.unwrap().provenance.reward_model, None);
    let single = start(&judge, &[SKY]).await;
    assert_eq!(single.answer(ask()).await.unwrap().provenance.reward_model, None);
    assert_eq!(judge.n_asked.load(Ordering::SeqCst), 0);
}
