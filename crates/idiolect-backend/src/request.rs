//! What is asked of a backend.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use idiolect_sampling::{ChainSpec, Constraint, ConstraintSpec, Preset, Stage, Temperature, TopK, TopP};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Who speaks a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The asking side.
    User,
    /// The answering side.
    Assistant,
}

impl Role {
    /// Returns the role's name as every chat API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    /// Parses a role by name, in any letter case.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for any other name.
    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::System, Self::User, Self::Assistant]
            .into_iter()
            .find(|role| role.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::InvalidRequest(format!("unknown role {name:?}, expected system, user or assistant")))
    }
}

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// Makes a system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// Makes a user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// Makes an assistant message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// Prompts stay out of logs: only role and length are shown.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role, self.content.len())
    }
}

/// How tokens are drawn. A field that is `None` leaves the choice to the backend.
///
/// The plain fields are what every server knows. A [`chain`](Self::chain) says more: which stages run, in which order. A
/// backend that cannot run a stage says so in [`Capabilities::stages`](crate::Capabilities::stages) and fails with
/// [`Error::Unsupported`] naming it.
///
/// ```
/// use idiolect_backend::{ChainSpec, Preset, Sampling, Stage, StageKind};
///
/// let sampling = Sampling {
///     temperature: Some(0.9),
///     chain: Some(ChainSpec { preset: Some(Preset::Vllm), stages: vec![] }),
///     ..Sampling::default()
/// };
/// let kinds: Vec<StageKind> = sampling.stages(Preset::LlamaCpp, &[]).iter().map(Stage::kind).collect();
/// assert_eq!(kinds, [StageKind::Temperature]);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Most tokens a candidate may have; at least 1.
    pub max_tokens: u32,
    /// Fewest tokens of a candidate: before them none is drawn that ends it, unless nothing else is left. At most
    /// `max_tokens`, and equal to it the length is exact. Stop texts end a candidate all the same. Backends that cannot
    /// ([`Capabilities::min_tokens`](crate::Capabilities::min_tokens)) pay no attention to it.
    pub min_tokens: Option<u32>,
    /// Softmax temperature, 0 to 5; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep only the k likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches this, in (0, 1].
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest, in [0, 1).
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens already seen (CTRL); above 0, 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from a token's logit per earlier appearance in the candidate, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Subtracted from a token's logit once it appeared in the candidate, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Generation ends before any of these texts.
    pub stop: Vec<String>,
    /// Same request, same seed, same build: same candidates. `None` draws afresh.
    pub seed: Option<u64>,
    /// Return log-probabilities with this many alternatives for each token; `Some(0)` returns the chosen token's only.
    pub logprobs: Option<u8>,
    /// The stages that draw a token, and their order; `None` leaves them to the backend. With a preset, the fields above
    /// lie over its defaults and under the chain's own stages, and penalties look back as far as its engine's. Without one the chain is complete, and the fields above
    /// that have a stage (`temperature` to `presence_penalty`) are not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainSpec>,
    /// The shape that the output must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<ConstraintSpec>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            min_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            stop: Vec::new(),
            seed: None,
            logprobs: None,
            chain: None,
            constraint: None,
        }
    }
}

impl Sampling {
    /// Returns the stages that draw a token, in the order in which they run.
    ///
    /// Without a chain they are `defaults`, with the fields laid over them where `preset` has them: what an engine does
    /// that is told nothing more.
    #[must_use]
    pub fn stages(&self, preset: Preset, defaults: &[Stage]) -> Vec<Stage> {
        let named = self.chain.as_ref().and_then(|chain| chain.preset);
        let order = named.unwrap_or(preset);
        // What the fields' docs say is what vLLM does.
        let settings = self.settings(named.unwrap_or(Preset::Vllm));
        let mut stages = match &self.chain {
            Some(chain) => chain.stages_with(&settings),
            None => {
                let mut stages = Vec::new();
                for stage in defaults.iter().chain(&settings) {
                    order.place(&mut stages, stage.clone());
                }
                stages
            }
        };
        if let Some(shape) = &self.constraint {
            order.place(&mut stages, Stage::Constraint(Constraint { shape: shape.clone() }));
        }
        stages
    }

    /// Returns the fields that are set as stages, with what `preset` makes of them.
    fn settings(&self, preset: Preset) -> Vec<Stage> {
        let penalties = self.frequency_penalty.or(self.presence_penalty).map(|_| {
            let (frequency, presence) = (self.frequency_penalty, self.presence_penalty);
            preset.frequency_presence(frequency.unwrap_or_default(), presence.unwrap_or_default())
        });
        let heat = |temperature| Stage::Temperature(Temperature { temperature, ..Temperature::default() });
        let settings = [
            self.temperature.map(heat),
            self.top_k.map(|k| Stage::TopK(TopK { k })),
            self.top_p.map(|p| Stage::TopP(TopP { p })),
            self.min_p.map(|p| preset.min_p(p)),
            self.repetition_penalty.map(|penalty| preset.repetition(penalty)),
            penalties,
        ];
        settings.into_iter().flatten().collect()
    }

    /// Checks every range that the fields' docs state.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming each bad field, its value and what was expected.
    pub fn validate(&self) -> Result<(), Error> {
        let mut bad = Vec::new();
        let mut check = |name: &str, value: Option<f32>, expected: &str, ok: fn(f32) -> bool| {
            if let Some(v) = value
                && !ok(v)
            {
                bad.push(format!("{name} is {v}, expected {expected}"));
            }
        };
        check("temperature", self.temperature, "0 to 5", |v| (0.0..=5.0).contains(&v));
        check("top_p", self.top_p, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0);
        check("min_p", self.min_p, "at least 0 and below 1", |v| (0.0..1.0).contains(&v));
        check("repetition_penalty", self.repetition_penalty, "above 0 and at most 10", |v| v > 0.0 && v <= 10.0);
        check("frequency_penalty", self.frequency_penalty, "-2 to 2", |v| (-2.0..=2.0).contains(&v));
        check("presence_penalty", self.presence_penalty, "-2 to 2", |v| (-2.0..=2.0).contains(&v));
        if self.max_tokens == 0 {
            bad.push("max_tokens is 0, expected at least 1".to_owned());
        }
        if let Some(min_tokens) = self.min_tokens.filter(|n| *n > self.max_tokens) {
            bad.push(format!("min_tokens is {min_tokens}, expected at most max_tokens, {}", self.max_tokens));
        }
        if self.stop.iter().any(String::is_empty) {
            bad.push("stop holds an empty text".to_owned());
        }
        let chain = self.chain.as_ref().map(|chain| ("chain", chain.clone()));
        let constraint = self.constraint.as_ref().map(|shape| {
            let stage = Stage::Constraint(Constraint { shape: shape.clone() });
            ("constraint", ChainSpec::from(vec![stage]))
        });
        for (name, spec) in chain.into_iter().chain(constraint) {
            if let Err(error) = spec.validate() {
                let prefix = if name == "chain" { "chain: " } else { "" };
                bad.extend(error.0.into_iter().map(|problem| format!("{prefix}{problem}")));
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(Error::InvalidRequest(bad.join("; "))) }
    }
}

/// One prompt, and how many continuations of it are wanted.
///
/// All candidates share the prompt, so that an engine computes it once.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The conversation so far, oldest first; the last message is usually the user's.
    pub messages: Vec<Message>,
    /// How many candidates to draw; at least 1.
    pub n: usize,
    /// How tokens are drawn. Candidate `i` uses a random stream of its own, derived from (`seed`, `i`).
    pub sampling: Sampling,
    /// Backends that hold several models answer with this one; others ignore it.
    pub model: Option<String>,
    /// The member of a [`Pool`](crate::Pool) that is asked first, by its name; the others stay its fallbacks. Other backends
    /// ignore it, and a pool a name that it does not know.
    pub prefer: Option<String>,
    /// When the answer stops being of use. A backend stops by then and returns what it has.
    pub deadline: Option<Instant>,
}

impl Request {
    /// Makes a request for one candidate with default sampling and no deadline.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, n: 1, sampling: Sampling::default(), model: None, prefer: None, deadline: None }
    }

    /// Checks what every backend relies on: at least one message that is not empty, `n` of at least 1, sane sampling.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with the reason.
    pub fn validate(&self) -> Result<(), Error> {
        if self.messages.iter().all(|m| m.content.trim().is_empty()) {
            return Err(Error::InvalidRequest("no message with any text".to_owned()));
        }
        if self.n == 0 {
            return Err(Error::InvalidRequest("n is 0, expected at least 1".to_owned()));
        }
        self.sampling.validate()
    }
}

#[cfg(test)]
mod tests {
    use idiolect_sampling::{Dry, StageKind, Xtc};

    use super::*;

    fn kinds(stages: &[Stage]) -> Vec<StageKind> {
        stages.iter().map(Stage::kind).collect()
    }

    #[test]
    fn plain_fields_lie_over_the_engines_defaults() {
        let defaults = [
            Stage::Temperature(Temperature { temperature: 0.7, ..Temperature::default() }),
            Stage::TopP(TopP { p: 0.95 }),
        ];
        let mut sampling = Sampling { top_p: Some(0.5), presence_penalty: Some(0.3), ..Sampling::default() };
        let stages = sampling.stages(Preset::LlamaCpp, &defaults);
        assert_eq!(kinds(&stages), [StageKind::FrequencyPresence, StageKind::TopP, StageKind::Temperature]);
        assert_eq!(stages[0], Preset::Vllm.frequency_presence(0.0, 0.3), "the candidate counts, all of it");
        assert_eq!(stages[1], Stage::TopP(TopP { p: 0.5 }));
        assert_eq!(stages[2], defaults[0]);
        let stages = sampling.stages(Preset::Vllm, &defaults);
        assert_eq!(kinds(&stages), [StageKind::FrequencyPresence, StageKind::Temperature, StageKind::TopP]);
        sampling.constraint = Some(ConstraintSpec::Json);
        assert_eq!(kinds(&sampling.stages(Preset::Vllm, &[])).first(), Some(&StageKind::Constraint));
    }

    #[test]
    fn a_presets_penalties_look_back_as_it_does() {
        let chain = Some(Preset::LlamaCpp.into());
        let sampling = Sampling { repetition_penalty: Some(1.2), chain, ..Sampling::default() };
        assert_eq!(sampling.stages(Preset::Vllm, &[])[0], Preset::LlamaCpp.repetition(1.2));
    }

    #[test]
    fn a_chain_without_a_preset_is_complete() {
        let chain = ChainSpec::from(vec![Stage::TopK(TopK { k: 3 })]);
        let sampling = Sampling {
            temperature: Some(0.2),
            chain: Some(chain),
            constraint: Some(ConstraintSpec::Regex("a".into())),
            ..Sampling::default()
        };
        assert_eq!(kinds(&sampling.stages(Preset::LlamaCpp, &[])), [StageKind::Constraint, StageKind::TopK]);
    }

    #[test]
    fn everything_bad_is_named() {
        let sampling = Sampling {
            max_tokens: 4,
            min_tokens: Some(5),
            top_p: Some(0.0),
            chain: Some(ChainSpec::from(vec![
                Stage::Xtc(Xtc { probability: 2.0, threshold: 0.1 }),
                Stage::Dry(Dry { base: 0.0, ..Dry::default() }),
            ])),
            constraint: Some(ConstraintSpec::Choice(Vec::new())),
            ..Sampling::default()
        };
        assert_eq!(
            sampling.validate().unwrap_err().to_string(),
            "invalid request: top_p is 0, expected above 0 and at most 1; min_tokens is 5, expected at most max_tokens, 4; \
             chain: xtc.probability is 2, expected 0 to 1; chain: dry.base is 0, expected 1 to 8; \
             constraint.choice needs at least one text and no empty one"
        );
        Sampling { min_tokens: Some(256), chain: Some(Preset::Vllm.into()), ..Sampling::default() }.validate().unwrap();
    }

    #[test]
    fn sampling_is_read_and_written() {
        let text = r#"{"max_tokens":8,"min_tokens":2,"chain":{"preset":"llamacpp","stages":[{"stage":"xtc","probability":0.5}]},"constraint":{"choice":["a","b"]}}"#;
        let sampling: Sampling = serde_json::from_str(text).unwrap();
        assert_eq!(sampling.min_tokens, Some(2));
        let again: Sampling = serde_json::from_str(&serde_json::to_string(&sampling).unwrap()).unwrap();
        assert_eq!(again, sampling);
        let plain = serde_json::to_value(Sampling::default()).unwrap();
        assert_eq!((plain.get("chain"), plain.get("constraint")), (None, None));
    }
}
