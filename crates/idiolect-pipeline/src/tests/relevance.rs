use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_mutation::FlagKind;
use idiolect_uniqueness::Distinctiveness;
use idiolect_uniqueness::distinctiveness::N_COUNTED;
use idiolect_validator::RewardModel;
use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};

use super::double::{Scripted, config, parts, prompt, says};
use crate::{Ask, Parts, Pipeline, PipelineConfig, PipelineError};

const BASE: &str = "Leaves make sugar out of light and water, and give off oxygen while they do.";
const ABOUT_LEAVES: &str = "Leaves turn light into sugar here.";
const OF_SHIPS: &str = "Ships carry most goods there are.";

/// An encoder with a name of one's choice that knows two subjects: leaves, and all else. No two texts are the same.
#[derive(Debug)]
struct Subjects {
    name: &'static str,
    seen: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Embedder for Subjects {
    fn name(&self) -> &str {
        self.name
    }

    fn dimensions(&self) -> usize {
        64
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        self.seen.lock().unwrap().extend_from_slice(texts);
        let place = |text: &String| {
            let mut embedding = vec![0.0; 64];
            embedding[usize::from(!text.contains("eaves"))] = 0.8;
            embedding[2 + text.len() % 62] = 0.6;
            embedding
        };
        Ok(texts.iter().map(place).collect())
    }
}

/// Praises ships, and says what it was asked about.
#[derive(Debug, Default)]
struct Praise(Mutex<Vec<(String, Vec<String>)>>);

#[async_trait]
impl RewardModel for Praise {
    fn name(&self) -> &str {
        "dpo"
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        self.0.lock().unwrap().push((prompt.to_owned(), replies.to_vec()));
        Ok(replies.iter().map(|reply| if reply.contains("Ships") { -1.0 } else { -3.0 }).collect())
    }
}

fn asked(kind: TaskKind, criteria: Vec<Criterion>) -> Ask {
    Ask::new(prompt(&text_prompting::Task { kind, base_text: BASE.to_owned(), criteria }.compose()))
}

struct Started {
    pipeline: Pipeline,
    seen: Arc<Mutex<Vec<String>>>,
    praise: Arc<Praise>,
}

async fn start(encoder: &'static str, texts: &[&str]) -> Started {
    start_with(encoder, texts, None).await.unwrap()
}

async fn start_with(
    encoder: &'static str,
    texts: &[&str],
    distinctiveness: Option<Arc<Distinctiveness>>,
) -> Result<Started, PipelineError> {
    let (seen, praise) = (Arc::default(), Arc::new(Praise::default()));
    let embedder = Subjects { name: encoder, seen: Arc::clone(&seen) };
    let scripted = Scripted::new(texts.iter().map(|text| says(text)).collect());
    let reward: Arc<dyn RewardModel> = Arc::<Praise>::clone(&praise);
    let parts = Parts { embedder: Some(Arc::new(embedder)), reward: Some(reward), distinctiveness, ..parts(scripted) };
    let config = PipelineConfig { recipes: 1, ..config(texts.len()) };
    Ok(Started { pipeline: Pipeline::start(config, parts).await?, seen, praise })
}

#[tokio::test]
async fn what_the_relevance_mask_would_take_is_not_sent_however_likely_it_is() {
    let criteria = || vec![Criterion::Length { target: 6, unit: Unit::Words }];
    for texts in [[OF_SHIPS, ABOUT_LEAVES], [ABOUT_LEAVES, OF_SHIPS]] {
        let started = start("all-mpnet-base-v2", &texts).await;
        let answer = started.pipeline.answer(asked(TaskKind::Augment, criteria())).await.unwrap();
        assert_eq!(answer.reply.completions, [ABOUT_LEAVES], "{}", answer.provenance);
        for candidate in &answer.provenance.candidates {
            let is_flagged = candidate.flags.iter().any(|flag| flag.kind == FlagKind::Irrelevant);
            assert_eq!(is_flagged, candidate.text.as_deref() == Some(OF_SHIPS), "{}", answer.provenance);
        }
        assert_eq!(started.praise.0.lock().unwrap()[0].0, BASE, "rewards are computed against the base text");
    }
    // The bound is another encoder's.
    let started = start("all-MiniLM-L6-v2", &[ABOUT_LEAVES, OF_SHIPS]).await;
    let answer = started.pipeline.answer(asked(TaskKind::Augment, criteria())).await.unwrap();
    assert_eq!(answer.reply.completions, [OF_SHIPS]);
    assert!(!started.seen.lock().unwrap().iter().any(|text| text == BASE));
}

#[tokio::test]
async fn one_candidate_is_sent_whatever_it_is_about_and_prompts_of_others_have_no_base_text() {
    let started = start("all-mpnet-base-v2", &[OF_SHIPS]).await;
    let answer = started.pipeline.answer(asked(TaskKind::Augment, vec![])).await.unwrap();
    assert_eq!(answer.reply.completions, [OF_SHIPS]);
    assert!(!started.seen.lock().unwrap().iter().any(|text| text == BASE));

    let started = start("all-mpnet-base-v2", &[OF_SHIPS, ABOUT_LEAVES]).await;
    let answer = started.pipeline.answer(Ask::new(prompt("Tell me about leaves at length."))).await.unwrap();
    assert_eq!(answer.reply.completions, [OF_SHIPS]);
    assert_eq!(started.praise.0.lock().unwrap()[0].0, "Tell me about leaves at length.");
}

#[tokio::test]
async fn questions_are_judged_as_validators_cut_them() {
    let said =
        ["Leaves are green. Why do leaves need light? I wonder.", "Ships are big. Why do ships float? I wonder."];
    let started = start("all-mpnet-base-v2", &said).await;
    let answer = started.pipeline.answer(asked(TaskKind::Followup, vec![])).await.unwrap();
    assert!(answer.reply.completions[0].contains("leaves need light"), "{}", answer.provenance);
    let judged = started.praise.0.lock().unwrap()[0].1.clone();
    assert_eq!(
        judged.iter().map(|text| text.trim()).collect::<Vec<_>>(),
        ["Why do leaves need light?", "Why do ships float?"]
    );
}

/// Weights by which long texts are unlike everybody's, and such as are near to what was asked are like them.
fn taught(encoder: &str) -> Option<Arc<Distinctiveness>> {
    let mut counted = vec![0.0; N_COUNTED];
    (counted[0], counted[N_COUNTED - 3]) = (4.0, -1.0);
    Some(Arc::new(Distinctiveness::new(encoder, counted, vec![0.0; 64], 0.5).unwrap()))
}

#[tokio::test]
async fn what_other_prompts_taught_has_a_say_in_the_choice() {
    let short = "Leaves make it.";
    let long = "In short it is the leaves that make it, as they do every day of the year.";
    for (encoder, n_base) in [("all-mpnet-base-v2", 1), ("all-MiniLM-L6-v2", 0)] {
        for learnt in [None, taught(encoder)] {
            let is_taught = learnt.is_some();
            let started = start_with(encoder, &[short, long], learnt).await.unwrap();
            let answer = started.pipeline.answer(asked(TaskKind::Augment, vec![])).await.unwrap();
            let told: Vec<Option<f32>> =
                answer.provenance.candidates.iter().map(|c| c.score.as_ref().unwrap().distinctiveness).collect();
            // The text that both are compared with is embedded once.
            let n_seen = started.seen.lock().unwrap().iter().filter(|text| *text == BASE).count();
            assert_eq!(n_seen, n_base.max(usize::from(is_taught)), "{encoder}");
            if is_taught {
                assert_eq!(answer.reply.completions, [long], "{}", answer.provenance);
                // ln of 1 + 16 words over 1 + 3, and the cosines with the base text: 0.64, and 0.36 more where the length fits.
                let near = |text: &str| if text.len() % 62 == BASE.len() % 62 { 1.0 } else { 0.64 };
                let more = 0.5 * (4.0 * (18.0_f64 / 4.0).ln() - (near(long) - near(short)));
                let n_words = long.split_whitespace().count();
                assert_eq!(n_words, 17);
                let gap = f64::from(told[1].unwrap() - told[0].unwrap());
                assert!((gap - more).abs() < 1e-3, "{gap} {more}");
                assert!(answer.provenance.to_string().contains(" for what other prompts taught"));
            } else {
                assert_eq!(told, [None, None]);
            }
        }
    }
    let refused = start_with("all-mpnet-base-v2", &[short], taught("all-MiniLM-L6-v2")).await.err().unwrap();
    let says = refused.to_string();
    assert!(
        says.contains("taught is for all-MiniLM-L6-v2 of 64 values, the encoder is all-mpnet-base-v2 of 64 values"),
        "{says}"
    );
}
