//! Which requests are mutated at all, and with what.

use serde::{Deserialize, Serialize};

/// What is known of a request before it is routed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The transport's name: `grpc`, `http`, `epistula`, `btauth`; empty for our own questions.
    pub transport: &'a str,
    /// The task's name as the caller gives it, otherwise the detected one's.
    pub task: &'a str,
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

/// A rule: requests that match are treated like this. An empty list matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Transports it is for.
    pub transport: Vec<String>,
    /// Task names it is for.
    pub task: Vec<String>,
    /// What becomes of them.
    pub mode: Mode,
}

impl Route {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let among = |list: &[String], value: &str| list.is_empty() || list.iter().any(|item| item == value);
        among(&self.transport, facts.transport) && among(&self.task, facts.task)
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
    use super::*;

    #[test]
    fn the_first_match_wins_and_passthrough_cannot_be_overridden() {
        let rule = |transport: &str, task: &str, mode| Route {
            transport: Vec::from_iter((!transport.is_empty()).then(|| transport.to_owned())),
            task: Vec::from_iter((!task.is_empty()).then(|| task.to_owned())),
            mode,
        };
        let only_angle = Mode::Mutate { slots: vec!["angle".to_owned()] };
        let routes = [
            rule("grpc", "followup", only_angle.clone()),
            rule("epistula", "", Mode::Passthrough),
            rule("", "", Mode::mutate()),
        ];
        let facts = |transport, task| Facts { transport, task, dictated: false };
        assert_eq!(route(&routes, &facts("grpc", "followup")), only_angle);
        assert_eq!(route(&routes, &facts("epistula", "followup")), Mode::Passthrough);
        assert_eq!(route(&routes, &facts("http", "followup")), Mode::mutate());
        assert_eq!(route(&routes, &facts("http", "InferenceTask")), Mode::Passthrough);
        assert!(route(&routes, &Facts { dictated: true, ..facts("grpc", "followup") }).is_passthrough());
        assert_eq!(route(&[], &Facts::default()), Mode::mutate());
    }
}
