//! Which requests are mutated at all, and with what.

use serde::{Deserialize, Serialize};

use crate::{Form, Shape};

/// What is known of a request before it is routed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The transport's name: `grpc`, `http`, `epistula`, `btauth`; empty for our own questions.
    pub transport: &'a str,
    /// The task's name as the caller gives it, otherwise the detected one's.
    pub task: &'a str,
    /// The asking validator's hotkey, in the usual form of SS58; empty where there is none.
    pub validator: &'a str,
    /// What the prompt looks like; `None` where nobody looked, which no condition on it matches.
    pub shape: Option<Shape>,
    /// The caller dictates seed and sampling: its answer is checked against a model's.
    pub dictated: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// Prompt and sampling go to the model as they came.
    Passthrough,
    /// Operators may be drawn, of these slots only when some are named.
    Mutate {
        /// The slots; empty for all.
        slots: Vec<String>,
    },
}

impl Default for Mode {
    fn default() -> Self {
        Self::mutate()
    }
}

impl Mode {
    /// All slots may be used.
    #[must_use]
    pub const fn mutate() -> Self {
        Self::Mutate { slots: Vec::new() }
    }

    /// Says whether the request goes to the model as it came.
    #[must_use]
    pub const fn is_passthrough(&self) -> bool {
        matches!(self, Self::Passthrough)
    }
}

/// A rule: requests that match are treated like this. What is empty or `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Transports it is for.
    pub transport: Vec<String>,
    /// Task names it is for; `followup` stands for `followup3`, too.
    pub task: Vec<String>,
    /// Hotkeys of the validators it is for.
    pub validator: Vec<String>,
    /// The fewest and the most words of the prompt.
    pub words: Option<(u32, u32)>,
    /// How the prompt asks.
    pub form: Vec<Form>,
    /// Whether it brings a text to work on along; see [`Shape::has_context`].
    pub context: Option<bool>,
    /// Its language; see [`Shape::language`].
    pub language: Vec<String>,
    /// What becomes of them.
    pub mode: Mode,
}

impl Route {
    /// Says whether a request is one of those that it is for.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let among = |list: &[String], value: &str| list.is_empty() || list.iter().any(|item| item == value);
        // Validators count their tasks: followup3 is a followup.
        let uncounted = facts.task.trim_end_matches(|c: char| c.is_ascii_digit());
        among(&self.transport, facts.transport)
            && (among(&self.task, facts.task) || among(&self.task, uncounted))
            && among(&self.validator, facts.validator)
            && self.matches_shape(facts.shape)
    }

    fn matches_shape(&self, shape: Option<Shape>) -> bool {
        let asks = self.words.is_some() || !self.form.is_empty() || self.context.is_some() || !self.language.is_empty();
        let Some(shape) = shape else { return !asks };
        self.words.is_none_or(|(fewest, most)| (fewest..=most).contains(&shape.words))
            && (self.form.is_empty() || self.form.contains(&shape.form))
            && self.context.is_none_or(|context| context == shape.has_context)
            && (self.language.is_empty() || self.language.iter().any(|language| language == shape.language))
    }

    /// Says whether every request matches.
    pub(crate) fn is_for_all(&self) -> bool {
        *self == Self { mode: self.mode.clone(), ..Self::default() }
    }
}

/// Task names whose answers validators recompute: no rule can have them mutated.
const CHECKED_TASKS: [&str; 1] = ["InferenceTask"];

/// Finds what becomes of a request: the first route that matches, otherwise every operator may be drawn.
///
/// What the caller dictates, and what validators recompute, is passthrough whatever the routes say.
#[must_use]
pub fn route(routes: &[Route], facts: &Facts<'_>) -> Mode {
    if facts.dictated || CHECKED_TASKS.contains(&facts.task) {
        return Mode::Passthrough;
    }
    routes.iter().find(|route| route.matches(facts)).map_or_else(Mode::mutate, |route| route.mode.clone())
}

#[cfg(test)]
mod tests {
    use idiolect_backend::Message;

    use super::*;

    #[test]
    fn the_first_match_wins_and_passthrough_cannot_be_overridden() {
        let rule = |transport: &str, task: &str, mode| Route {
            transport: Vec::from_iter((!transport.is_empty()).then(|| transport.to_owned())),
            task: Vec::from_iter((!task.is_empty()).then(|| task.to_owned())),
            mode,
            ..Route::default()
        };
        let only_angle = Mode::Mutate { slots: vec!["angle".to_owned()] };
        let routes = [
            rule("grpc", "followup", only_angle.clone()),
            rule("epistula", "", Mode::Passthrough),
            rule("", "", Mode::mutate()),
        ];
        let facts = |transport, task| Facts { transport, task, ..Facts::default() };
        assert_eq!(route(&routes, &facts("grpc", "followup")), only_angle);
        assert_eq!(route(&routes, &facts("grpc", "followup3")), only_angle);
        assert_eq!(route(&routes, &facts("epistula", "followup")), Mode::Passthrough);
        assert_eq!(route(&routes, &facts("http", "followup")), Mode::mutate());
        assert_eq!(route(&routes, &facts("http", "InferenceTask")), Mode::Passthrough);
        assert!(route(&routes, &Facts { dictated: true, ..facts("grpc", "followup") }).is_passthrough());
        assert_eq!(route(&[], &Facts::default()), Mode::mutate());
    }

    #[test]
    fn validators_and_shapes_are_matched() {
        let shape = |text: &str| Facts { shape: Some(Shape::of(&[Message::user(text)])), ..Facts::default() };
        let keys = Route { validator: vec!["5F".to_owned(), "5G".to_owned()], ..Route::default() };
        assert!(keys.matches(&Facts { validator: "5G", ..Facts::default() }));
        assert!(!keys.matches(&Facts::default()));
        let short = Route { words: Some((0, 5)), form: vec![Form::Question], ..Route::default() };
        assert!(short.matches(&shape("Why is the sky blue?")));
        assert!(!short.matches(&shape("Why is the sky blue at noon?")));
        assert!(!short.matches(&shape("Say why.")));
        assert!(!short.matches(&Facts::default()), "nobody looked");
        let context = Route { context: Some(true), ..Route::default() };
        assert!(context.matches(&shape(&format!("{}\nWhy?", "word ".repeat(50)))) && !context.matches(&shape("Why?")));
        let german = Route { language: vec!["de".to_owned()], ..Route::default() };
        assert!(
            german.matches(&shape("Warum ist der Himmel blau?")) && !german.matches(&shape("Why is the sky blue?"))
        );
        assert!(Route::default().matches(&Facts::default()) && Route::default().is_for_all());
        assert!(!german.is_for_all());
    }
}
