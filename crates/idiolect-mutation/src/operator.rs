//! One mutation: a short instruction of the operator's own that is added to the prompt.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::template::{self, PARAPHRASE, PROMPT};
use crate::{NamePattern, RenderError, SamplingRanges, Task, tokens};

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
    /// In place of the last user message: the text holds `{{ prompt }}`, where that message's own text is put as it is, or
    /// `{{ paraphrase }}`, where a [`Paraphraser`](crate::Paraphraser) puts it in other words.
    Rewrite,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 4] = [Self::System, Self::Prepend, Self::Append, Self::Rewrite];

    /// Returns the name used in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Prepend => "prepend",
            Self::Append => "append",
            Self::Rewrite => "rewrite",
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
        let expected = || format!("is {name:?}, expected system, prepend, append or rewrite");
        Self::ALL.into_iter().find(|place| place.as_str() == name).ok_or_else(expected)
    }
}

/// A mutation of the prompt.
///
/// The text is a minijinja template that knows `task` (the task's name) and draws by the request's own random numbers:
/// `pick([…])` takes one element of a list, `word()` an everyday word, `number(low, high)` a whole number. Undefined names
/// are errors, and so is a template that runs on. The caller's text is never seen by a template: whatever it holds, it is
/// not evaluated. That of a rewrite says with `{{ prompt }}` where the caller's text is put afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// A name, unique in the library: `register.academic`.
    pub name: String,
    /// Operators of one slot exclude each other; [`SLOTS`](crate::slot::SLOTS) has the usual ones.
    pub slot: String,
    /// Raised by its author when the text changes, so that what was learnt of the old one is not taken for the new.
    pub version: u32,
    /// Where the text goes.
    pub place: Place,
    /// The text's template. Empty only where there are sampling settings, a backend or a model.
    pub text: String,
    /// How often it is drawn, beside the others; 0 (never) to a billion.
    pub weight: f64,
    /// Sampling settings that come with it.
    pub sampling: SamplingRanges,
    /// Tasks it is for; empty for all.
    pub tasks: Vec<Task>,
    /// Operators that never share a recipe with it.
    #[serde(default)]
    pub excludes: Vec<NamePattern>,
    /// Of the operators that each of these stands for, one has to be in the recipe, too; it is drawn along.
    #[serde(default)]
    pub requires: Vec<NamePattern>,
    /// Most tokens that its text may have, by [`tokens::estimate`].
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// Texts that it must not bring about: they may not be in its own text, and a reply that has one is found by
    /// [`induced`](Self::induced). Letter case does not count.
    #[serde(default)]
    pub forbid: Vec<String>,
    /// The backend that answers, by its name in a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The model that answers, where a backend has several or several backends serve different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// Most tokens of an operator where it does not say.
pub(crate) const DEFAULT_MAX_TOKENS: u32 = 80;

const fn default_max_tokens() -> u32 {
    DEFAULT_MAX_TOKENS
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
            sampling: SamplingRanges::default(),
            tasks: Vec::new(),
            excludes: Vec::new(),
            requires: Vec::new(),
            max_tokens: DEFAULT_MAX_TOKENS,
            forbid: Vec::new(),
            backend: None,
            model: None,
        }
    }

    /// Says whether it may be used for a task.
    #[must_use]
    pub fn is_for(&self, task: Task) -> bool {
        self.tasks.is_empty() || self.tasks.contains(&task)
    }

    /// Says whether both may be in one recipe: they have different slots, neither excludes the other, and at most one is a
    /// rewrite, chooses the backend, or chooses the model.
    #[must_use]
    pub fn goes_with(&self, other: &Self) -> bool {
        let excludes = |a: &Self, b: &Self| a.excludes.iter().any(|pattern| pattern.matches(&b.name));
        let rewrites = [self, other].iter().all(|operator| operator.place == Place::Rewrite);
        let backends = self.backend.is_some() && other.backend.is_some();
        let models = self.model.is_some() && other.model.is_some();
        let both = rewrites || backends || models;
        self.slot != other.slot && !excludes(self, other) && !excludes(other, self) && !both
    }

    /// Says whether it needs the caller's text in other words.
    #[must_use]
    pub fn is_paraphrase(&self) -> bool {
        let text: String = self.text.split_whitespace().collect();
        self.place == Place::Rewrite && text.contains("{{paraphrase}}")
    }

    /// Says whether it changes sampling, the backend or the model only, and no text.
    #[must_use]
    pub fn is_textless(&self) -> bool {
        let changes_else = !self.sampling.is_empty() || self.backend.is_some() || self.model.is_some();
        self.text.trim().is_empty() && changes_else
    }

    /// Returns the text for a task; it is empty where the operator [has none](Self::is_textless). The same seed gives the same text.
    /// That of a rewrite still has `{{ prompt }}` in the caller's text's place.
    ///
    /// # Errors
    /// [`RenderError`] when the template gives no usable text.
    pub fn render(&self, task: Task, seed: u64) -> Result<String, RenderError> {
        if self.is_textless() {
            return Ok(String::new());
        }
        let is_rewrite = self.place == Place::Rewrite;
        let text = template::render(&self.text, task, seed, is_rewrite)?;
        let n_prompts = if is_rewrite { text.matches(PROMPT).count() + text.matches(PARAPHRASE).count() } else { 1 };
        if n_prompts != 1 {
            return Err(RenderError::Prompts { n: n_prompts });
        }
        let n = added_tokens(self.place, &text);
        if n > self.max_tokens {
            return Err(RenderError::OverBudget { n, max: self.max_tokens });
        }
        match self.induced(&text) {
            Some(text) => Err(RenderError::Forbidden { text: text.to_owned() }),
            None => Ok(text),
        }
    }

    /// Returns the first of the texts that it must not bring about and that is in a reply.
    #[must_use]
    pub fn induced(&self, reply: &str) -> Option<&str> {
        let reply = reply.to_lowercase();
        self.forbid.iter().find(|text| reply.contains(&text.to_lowercase())).map(String::as_str)
    }
}

/// Estimates the tokens that a rendered text adds to the prompt.
pub(crate) fn added_tokens(place: Place, text: &str) -> u32 {
    match place {
        Place::Rewrite => text.split(PROMPT).flat_map(|part| part.split(PARAPHRASE)).map(tokens::estimate).sum(),
        _ => tokens::estimate(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Setting;

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
        assert!(matches!(render("{{ prompt }}"), Err(RenderError::Template(_))), "only a rewrite knows it");
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
    fn budgets_and_forbidden_texts_are_kept() {
        let mut operator = Operator::new("o", "s", Place::Append, "One two three four.");
        operator.max_tokens = 4;
        assert_eq!(operator.render(Task::Answer, 1), Err(RenderError::OverBudget { n: 5, max: 4 }));
        operator.max_tokens = 5;
        operator.forbid = vec!["TWO".to_owned()];
        assert_eq!(operator.render(Task::Answer, 1), Err(RenderError::Forbidden { text: "TWO".to_owned() }));
        assert_eq!(operator.induced("It takes two."), Some("TWO"));
        assert_eq!(operator.induced("It takes three."), None);
    }

    #[test]
    fn a_rewrite_holds_the_prompt_once() {
        let render = |text: &str| Operator::new("o", "s", Place::Rewrite, text).render(Task::Unknown, 1);
        assert_eq!(render("Consider {{prompt}} well.").unwrap(), "Consider {{ prompt }} well.");
        assert_eq!(render("Nothing."), Err(RenderError::Prompts { n: 0 }));
        assert_eq!(render("{{ prompt }} {{ prompt }}"), Err(RenderError::Prompts { n: 2 }));
        assert_eq!(render("{{ prompt | upper }}").ok(), None);
    }

    #[test]
    fn sampling_alone_needs_no_text() {
        let mut operator = Operator::new("o", "sampling", Place::System, "");
        assert_eq!(operator.render(Task::Unknown, 1), Err(RenderError::Empty));
        operator.sampling.temperature = Some(Setting::Fixed(0.9));
        assert_eq!(operator.render(Task::Unknown, 1).unwrap(), "");
    }

    #[test]
    fn slots_exclusions_and_rewrites_keep_apart() {
        let operator = |name: &str, slot: &str, place| Operator::new(name, slot, place, "x");
        let a = operator("a.x", "a", Place::Append);
        let mut b = operator("b.x", "b", Place::Append);
        assert!(a.goes_with(&b) && !a.goes_with(&a));
        b.excludes = vec!["a.*".parse().unwrap()];
        assert!(!a.goes_with(&b) && !b.goes_with(&a));
        let (c, d) = (operator("c", "c", Place::Rewrite), operator("d", "d", Place::Rewrite));
        assert!(!c.goes_with(&d) && c.goes_with(&a));
    }
}
