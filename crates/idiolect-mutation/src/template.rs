//! Rendering of operators' texts. Only what a library holds is ever a template.

use std::sync::{Arc, LazyLock, Mutex};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::Task;

/// Why an operator's template gives no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The template is wrong, or names something that is not there.
    #[error("{0}")]
    Template(String),
    /// It ran for too long.
    #[error("the template does not end within {FUEL} steps")]
    OutOfFuel,
    /// Nothing came out.
    #[error("the template gives no text")]
    Empty,
    /// Too much came out.
    #[error("the template gives {n} characters, at most {MAX_CHARACTERS} are allowed")]
    TooLong {
        /// How much.
        n: usize,
    },
    /// More tokens came out than the operator may add.
    #[error("the template gives about {n} tokens, expected at most {max}")]
    OverBudget {
        /// How many, by [`estimate`](crate::tokens::estimate).
        n: u32,
        /// The operator's `max_tokens`.
        max: u32,
    },
    /// It holds what its operator must not induce.
    #[error("the template gives {text:?}, which the operator forbids")]
    Forbidden {
        /// The forbidden text.
        text: String,
    },
    /// A rewrite must hold the prompt, or its paraphrase, once.
    #[error("the template holds {PROMPT} or {PARAPHRASE} {n} times, expected once")]
    Prompts {
        /// How often it does.
        n: usize,
    },
}

/// What stands for the caller's text in a rewrite, in its template and still in what was rendered.
pub(crate) const PROMPT: &str = "{{ prompt }}";
/// What stands for that text in other words.
pub(crate) const PARAPHRASE: &str = "{{ paraphrase }}";
/// Steps that a template may take.
const FUEL: u64 = 2_000;
/// More would crowd the prompt out, whatever the budget of tokens.
const MAX_CHARACTERS: usize = 400;

/// The words that `word()` draws from, one a line.
static WORDS: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("words.txt").lines().collect());

/// Renders a template. With `keeps_prompt` it may name `prompt`, which comes out as it went in.
pub(crate) fn render(template: &str, task: Task, seed: u64, keeps_prompt: bool) -> Result<String, RenderError> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    let random = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed)));
    let draw = move |random: &Mutex<ChaCha8Rng>, n: u64| random.lock().map_or(0, |mut r| r.next_u64()) % n.max(1);
    let of_pick = Arc::clone(&random);
    environment.add_function("pick", move |choices: Vec<Value>| -> Result<Value, minijinja::Error> {
        let index = usize::try_from(draw(&of_pick, choices.len() as u64)).unwrap_or(0);
        let empty = || minijinja::Error::new(ErrorKind::InvalidOperation, "pick needs a list that is not empty");
        choices.into_iter().nth(index).ok_or_else(empty)
    });
    let of_word = Arc::clone(&random);
    environment.add_function("word", move || -> String {
        let index = usize::try_from(draw(&of_word, WORDS.len() as u64)).unwrap_or(0);
        WORDS.get(index).copied().unwrap_or_default().to_owned()
    });
    environment.add_function("number", move |low: i64, high: i64| -> Result<i64, minijinja::Error> {
        let n = high.checked_sub(low).filter(|n| (0..i64::from(u32::MAX)).contains(n)).ok_or_else(|| {
            minijinja::Error::new(ErrorKind::InvalidOperation, "number needs a lowest and a highest number")
        })?;
        Ok(low + i64::try_from(draw(&random, n.unsigned_abs() + 1)).unwrap_or(0))
    });
    let rendered = if keeps_prompt {
        environment.render_str(template, context! { task => task.as_str(), prompt => PROMPT, paraphrase => PARAPHRASE })
    } else {
        environment.render_str(template, context! { task => task.as_str() })
    };
    let text = rendered.map_err(|error| match error.kind() {
        ErrorKind::OutOfFuel => RenderError::OutOfFuel,
        _ => RenderError::Template(error.to_string()),
    })?;
    let text = text.trim();
    match text.chars().count() {
        0 => Err(RenderError::Empty),
        n if n > MAX_CHARACTERS => Err(RenderError::TooLong { n }),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_plain_and_different() {
        assert!(WORDS.len() >= 150);
        let mut sorted = WORDS.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), WORDS.len());
        assert!(WORDS.iter().all(|word| word.len() >= 3 && word.chars().all(|c| c.is_ascii_lowercase())));
    }

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let render = |template, seed| render(template, Task::Answer, seed, false).unwrap();
        for template in ["{{ word() }}", "{{ number(1, 1000) }}", "{{ pick(['a','b','c','d','e']) }}"] {
            assert_eq!(render(template, 1), render(template, 1));
            assert!((0..50).any(|seed| render(template, seed) != render(template, 1)), "{template}");
        }
        for seed in 0..50 {
            assert!((2..=4).contains(&render("{{ number(2, 4) }}", seed).parse::<i64>().unwrap()));
        }
    }

    #[test]
    fn bad_numbers_are_errors() {
        for template in
            ["{{ number(4, 2) }}", "{{ number(-9223372036854775807, 9223372036854775807) }}", "{{ number() }}"]
        {
            assert!(matches!(render(template, Task::Answer, 1, false), Err(RenderError::Template(_))), "{template}");
        }
    }
}
