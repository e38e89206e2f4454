//! One mutation: a short instruction of the operator's own that is added to the prompt.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use idiolect_backend::{Error, Preset, Sampling, Stage};
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::Task;

/// Where an operator's text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Place {
    /// Into the system message, after what is there; a system message is made when there is none.
    System,
    /// Before the last user message's text.
    Prepend,
    /// After the last user message's text.
    Append,
}

impl Place {
    const ALL: [Self; 3] = [Self::System, Self::Prepend, Self::Append];

    /// Returns the name used in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Prepend => "prepend",
            Self::Append => "append",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let expected = || format!("is {name:?}, expected system, prepend or append");
        Self::ALL.into_iter().find(|place| place.as_str() == name).ok_or_else(expected)
    }
}

/// Sampling settings that an operator changes; `None` leaves a setting alone.
///
/// In a library: `sampling = { temperature = 0.9, preset = "llamacpp", stages = [{ stage = "xtc", probability = 0.5 }] }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOverrides {
    /// See [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`Sampling::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`Sampling::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// The preset of [`Sampling::chain`]: its order and its defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Stages that replace those of their kind in [`Sampling::chain`], or are added where its preset puts them. Where there
    /// is no chain they make one of the preset `llamacpp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

impl SamplingOverrides {
    /// Says whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes the settings that are given.
    pub fn apply(&self, sampling: &mut Sampling) {
        fn set<T: Copy>(target: &mut Option<T>, value: Option<T>) {
            *target = value.or(*target);
        }
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        if self.preset.is_some() || !self.stages.is_empty() {
            let chain = sampling.chain.get_or_insert_with(|| Preset::default().into());
            chain.preset = self.preset.or(chain.preset);
            for stage in &self.stages {
                chain.preset.unwrap_or_default().place(&mut chain.stages, stage.clone());
            }
        }
    }

    /// Checks the ranges that [`Sampling`] states.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming each bad value.
    pub fn validate(&self) -> Result<(), Error> {
        let mut sampling = Sampling::default();
        self.apply(&mut sampling);
        sampling.validate()
    }
}

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
}

/// Steps that a template may take.
const FUEL: u64 = 2_000;
/// About 80 tokens: more would crowd the prompt out.
const MAX_CHARACTERS: usize = 400;

/// A mutation of the prompt.
///
/// The text is a minijinja template that knows `task` (the task's name) and `pick([…])`, which takes one element of a
/// list, by the request's own random numbers. Undefined names are errors, and so is a template that runs on. The
/// caller's text is never seen by the template: whatever it holds, it is not evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// A name, unique in the library: `register.academic`.
    pub name: String,
    /// Operators of one slot exclude each other.
    pub slot: String,
    /// Raised by its author when the text changes, so that what was learnt of the old one is not taken for the new.
    pub version: u32,
    /// Where the text goes.
    pub place: Place,
    /// The text's template.
    pub text: String,
    /// How often it is drawn, beside the others; 0 (never) to a billion.
    pub weight: f64,
    /// Sampling settings that come with it.
    pub sampling: SamplingOverrides,
    /// Tasks it is for; empty for all.
    pub tasks: Vec<Task>,
}

impl Operator {
    /// Makes an operator of weight 1 for all tasks.
    pub fn new(name: impl Into<String>, slot: impl Into<String>, place: Place, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            slot: slot.into(),
            version: 1,
            place,
            text: text.into(),
            weight: 1.0,
            sampling: SamplingOverrides::default(),
            tasks: Vec::new(),
        }
    }

    /// Says whether it may be used for a task.
    #[must_use]
    pub fn is_for(&self, task: Task) -> bool {
        self.tasks.is_empty() || self.tasks.contains(&task)
    }

    /// Returns the text for a task. The same seed gives the same text.
    ///
    /// # Errors
    /// [`RenderError`] when the template gives no usable text.
    pub fn render(&self, task: Task, seed: u64) -> Result<String, RenderError> {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        let random = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        environment.add_function("pick", move |choices: Vec<Value>| -> Result<Value, minijinja::Error> {
            let drawn = random.lock().map_or(0, |mut random| random.next_u64());
            let index = usize::try_from(drawn % choices.len().max(1) as u64).unwrap_or(0);
            let empty = || minijinja::Error::new(ErrorKind::InvalidOperation, "pick needs a list that is not empty");
            choices.into_iter().nth(index).ok_or_else(empty)
        });
        let rendered = environment.render_str(&self.text, context! { task => task.as_str() });
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> Result<String, RenderError> {
        Operator::new("o", "s", Place::Append, text).render(Task::Answer, 7)
    }

    #[test]
    fn templates_know_the_task_and_pick() {
        assert_eq!(render(" For {{ task }}. \n").unwrap(), "For answer.");
        assert_eq!(render("{% if task == 'answer' %}yes{% else %}no{% endif %}").unwrap(), "yes");
        let operator = Operator::new("o", "s", Place::Append, "{{ pick(['a', 'b', 'c', 'd']) }}{{ pick(['a', 'b']) }}");
        let draw = |seed| operator.render(Task::Answer, seed).unwrap();
        assert_eq!(draw(1), draw(1));
        assert!((0..50).any(|seed| draw(seed) != draw(1)));
    }

    #[test]
    fn bad_templates_are_errors() {
        assert!(matches!(render("{{ nobody }}"), Err(RenderError::Template(_))));
        assert!(matches!(render("{{ pick([]) }}"), Err(RenderError::Template(_))));
        assert!(matches!(render("{% if %}"), Err(RenderError::Template(_))));
        assert!(matches!(render("{{ task.upper() }}"), Err(RenderError::Template(_))));
        let runs_on = "{% for a in [1,2,3,4,5,6,7,8,9] %}{% for b in [1,2,3,4,5,6,7,8,9] %}\
                       {% for c in [1,2,3,4,5,6,7,8,9] %}x{% endfor %}{% endfor %}{% endfor %}";
        assert_eq!(render(runs_on), Err(RenderError::OutOfFuel));
        assert_eq!(render("  "), Err(RenderError::Empty));
        assert_eq!(render(&"long ".repeat(100)), Err(RenderError::TooLong { n: 499 }));
    }

    #[test]
    fn overrides_change_only_what_they_name() {
        let mut sampling = Sampling { top_p: Some(0.9), temperature: Some(0.5), ..Sampling::default() };
        SamplingOverrides { temperature: Some(0.8), ..Default::default() }.apply(&mut sampling);
        assert_eq!((sampling.temperature, sampling.top_p), (Some(0.8), Some(0.9)));
        assert!(SamplingOverrides { temperature: Some(9.0), ..Default::default() }.validate().is_err());
    }
}
