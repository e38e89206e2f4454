//! Prompts as validators of version 2.1 compose them, over the texts of `tests/data/contexts.toml`, and replies that a model
//! gave to them.

use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, Unit, text_prompting};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

const CONTEXTS: &str = include_str!("../data/contexts.toml");

/// Prompts of each task that are made of a text.
const DRAWS: usize = 2;

/// What questions are asked to begin with, some of them at a time.
const QUESTION_WORDS: [&str; 6] = ["who", "what", "when", "where", "why", "how"];

#[derive(Deserialize)]
struct Context {
    text: String,
    question: String,
}

#[derive(Deserialize)]
struct Contexts {
    context: Vec<Context>,
}

/// A prompt and what was replied.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// The prompt's number among those of [`prompts`].
    pub(crate) prompt: usize,
    /// The reply.
    pub(crate) reply: String,
}

/// Composes all prompts, always the same.
pub(crate) fn prompts() -> Vec<text_prompting::Task> {
    let contexts: Contexts = toml::from_str(CONTEXTS).expect("the file is part of the crate");
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let mut prompts = Vec::new();
    for context in &contexts.context {
        for kind in TaskKind::ALL {
            for _ in 0..DRAWS {
                let quoted = format!("### SUMMARY CONTEXT:\n{}", context.text);
                let base_text = match kind {
                    TaskKind::Augment => context.text.clone(),
                    TaskKind::Followup => quoted,
                    TaskKind::Answer => format!("{quoted}\n### QUESTION 1:\n{}", context.question),
                };
                prompts.push(text_prompting::Task { kind, base_text, criteria: criteria(kind, &mut rng) });
            }
        }
    }
    prompts
}

fn criteria(kind: TaskKind, rng: &mut ChaCha8Rng) -> Vec<Criterion> {
    let length = match (kind, rng.next_u32() % 2) {
        (TaskKind::Followup, 0) => Criterion::Length { target: between(rng, 10, 40), unit: Unit::Words },
        (TaskKind::Followup, _) => Criterion::Length { target: between(rng, 40, 150), unit: Unit::Characters },
        (_, 0) => Criterion::Length { target: between(rng, 50, 200), unit: Unit::Words },
        (_, _) => Criterion::Length { target: between(rng, 4, 8), unit: Unit::Sentences },
    };
    if kind == TaskKind::Followup {
        let first = rng.next_u32() as usize % QUESTION_WORDS.len();
        let n_words = between(rng, 2, 6) as usize;
        let words = QUESTION_WORDS.iter().cycle().skip(first).take(n_words).map(|&word| word.to_owned()).collect();
        let starts = Criterion::Words { place: ContentMatch::StartsWith, negated: false, words };
        return vec![starts, length, Criterion::EndsWithQuestionMark];
    }
    let layout = match rng.next_u32() % 3 {
        0 => Criterion::Bullets,
        1 => Criterion::Numbers,
        _ => Criterion::NoLists,
    };
    let mut criteria = vec![length, layout];
    if kind == TaskKind::Answer {
        criteria.push(Criterion::NoQuestionMarks);
    }
    criteria
}

fn between(rng: &mut ChaCha8Rng, least: u32, most: u32) -> u32 {
    least + rng.next_u32() % (most - least + 1)
}
