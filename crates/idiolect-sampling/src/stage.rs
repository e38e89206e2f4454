//! The stages of a chain and their parameters.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Constraint;

/// Which tokens a stage looks back on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The prompt's and those drawn so far.
    #[default]
    All,
    /// Those drawn so far.
    Output,
}

/// Adds to the logits of some tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogitBias {
    /// What is added, by token id, -100 to 100; -100 means never.
    #[serde(serialize_with = "write_bias", deserialize_with = "read_bias")]
    pub bias: BTreeMap<u32, f32>,
}

/// Keeps tokens and texts from being drawn.
///
/// A phrase is a run of bytes of the output, however they are cut into tokens: the token that would complete it is not
/// drawn, whatever it completes it with, so that the output never holds the phrase. What was drawn before stays: nothing
/// is taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ban {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Texts of 1 to 256 bytes; upper and lower case differ.
    pub phrases: Vec<String>,
}

/// Divides positive and multiplies negative logits of tokens seen before (CTRL, with the sign mended).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repetition {
    /// Above 0 and at most 10; 1 is off.
    pub penalty: f32,
    /// How many of the last tokens count; `None` is all.
    pub last_n: Option<u32>,
    /// Which tokens are looked back on.
    pub scope: Scope,
}

impl Default for Repetition {
    fn default() -> Self {
        Self { penalty: 1.0, last_n: None, scope: Scope::All }
    }
}

/// Subtracts from the logits of tokens seen before (OpenAI).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrequencyPresence {
    /// For each appearance, -2 to 2; 0 is off.
    pub frequency: f32,
    /// Once a token appeared, -2 to 2; 0 is off.
    pub presence: f32,
    /// How many of the last tokens count; `None` is all.
    pub last_n: Option<u32>,
    /// Which tokens are looked back on.
    pub scope: Scope,
}

impl Default for FrequencyPresence {
    fn default() -> Self {
        Self { frequency: 0.0, presence: 0.0, last_n: None, scope: Scope::Output }
    }
}

/// Subtracts from the logits of tokens that would prolong a repetition, the more the longer it is ("don't repeat
/// yourself").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dry {
    /// What is subtracted at the allowed length, 0 to 100; 0 is off.
    pub multiplier: f32,
    /// By how much that grows with each further token, 1 to 8.
    pub base: f32,
    /// The shortest repetition whose continuation is penalised, in tokens, 1 to 1000.
    pub allowed_length: u32,
    /// How many of the last tokens are searched; `None` is all.
    pub last_n: Option<u32>,
    /// Which tokens are looked back on.
    pub scope: Scope,
    /// Repetitions don't reach over a token whose text holds one of these, and such a token is never penalised.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        let breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: None, scope: Scope::Output, breakers }
    }
}

/// Keeps the k likeliest tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopK {
    /// How many; 0 is off.
    pub k: u32,
}

/// Keeps the likeliest tokens that together reach a probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopP {
    /// Above 0 and at most 1; 1 is off. The token that reaches it is kept.
    pub p: f32,
}

impl Default for TopP {
    fn default() -> Self {
        Self { p: 1.0 }
    }
}

/// Keeps tokens at least a fraction as likely as the likeliest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinP {
    /// At least 0 and below 1; 0 is off.
    pub p: f32,
    /// Drop tokens that lie exactly on the border.
    pub exclusive: bool,
}

/// Keeps the tokens whose surprise is nearest to the expected one, until they reach a probability (locally typical).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Typical {
    /// Above 0 and at most 1; 1 is off.
    pub p: f32,
}

impl Default for Typical {
    fn default() -> Self {
        Self { p: 1.0 }
    }
}

/// Keeps tokens whose logit is at most so many standard deviations below the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopNSigma {
    /// 0 to 100 standard deviations; 0 is off.
    pub n: f32,
}

/// Drops, now and then, all likely tokens but the least likely of them ("exclude top choices").
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Xtc {
    /// How often, 0 to 1; 0 is off.
    pub probability: f32,
    /// The probability that makes a token likely, 0 to 1; off above 0.5, where no two tokens can have it.
    pub threshold: f32,
}

impl Default for Xtc {
    fn default() -> Self {
        Self { probability: 0.0, threshold: 0.1 }
    }
}

/// Divides logits by a temperature, which may depend on the entropy of what is left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Temperature {
    /// 0 to 5; below 0.00001 only the likeliest token is left.
    pub temperature: f32,
    /// The temperature lies within this of `temperature`, lowest where one token is sure and highest where all are
    /// alike; 0 to 5, and 0 is off.
    pub range: f32,
    /// The power of the normalised entropy that decides where within the range, above 0 and at most 10.
    pub exponent: f32,
}

impl Default for Temperature {
    fn default() -> Self {
        Self { temperature: 1.0, range: 0.0, exponent: 1.0 }
    }
}

/// Which mirostat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MirostatVersion {
    /// Estimates how the distribution falls off, and keeps the k likeliest.
    #[serde(rename = "1")]
    V1,
    /// Keeps what is less surprising than a bound.
    #[default]
    #[serde(rename = "2")]
    V2,
}

/// Holds the mean surprise of the text at a target, with feedback from token to token. Ends the chain and stands in for
/// every truncation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirostat {
    /// Which one: "1" or "2".
    pub version: MirostatVersion,
    /// The target in bits, above 0 and at most 100.
    pub tau: f32,
    /// How fast it is corrected, above 0 and at most 1.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { version: MirostatVersion::V2, tau: 5.0, eta: 0.1 }
    }
}

/// One step from logits to a token.
///
/// Written with its name as `stage` and its parameters beside it, of which those left out have their default:
/// `{ stage = "dry", multiplier = 0.8 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// See [`Constraint`].
    Constraint(Constraint),
    /// See [`LogitBias`].
    LogitBias(LogitBias),
    /// See [`Ban`].
    Ban(Ban),
    /// See [`Repetition`].
    Repetition(Repetition),
    /// See [`FrequencyPresence`].
    FrequencyPresence(FrequencyPresence),
    /// See [`Dry`].
    Dry(Dry),
    /// See [`TopNSigma`].
    TopNSigma(TopNSigma),
    /// See [`TopK`].
    TopK(TopK),
    /// See [`Typical`].
    Typical(Typical),
    /// See [`TopP`].
    TopP(TopP),
    /// See [`MinP`].
    MinP(MinP),
    /// See [`Xtc`].
    Xtc(Xtc),
    /// See [`Temperature`].
    Temperature(Temperature),
    /// See [`Mirostat`].
    Mirostat(Mirostat),
    /// Takes the likeliest token; of equal ones that with the lowest id. Ends the chain.
    Greedy {},
}

/// The kind of a [`Stage`], without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StageKind {
    /// See [`Constraint`].
    Constraint,
    /// See [`LogitBias`].
    LogitBias,
    /// See [`Ban`].
    Ban,
    /// See [`Repetition`].
    Repetition,
    /// See [`FrequencyPresence`].
    FrequencyPresence,
    /// See [`Dry`].
    Dry,
    /// See [`TopNSigma`].
    TopNSigma,
    /// See [`TopK`].
    TopK,
    /// See [`Typical`].
    Typical,
    /// See [`TopP`].
    TopP,
    /// See [`MinP`].
    MinP,
    /// See [`Xtc`].
    Xtc,
    /// See [`Temperature`].
    Temperature,
    /// See [`Mirostat`].
    Mirostat,
    /// See [`Stage::Greedy`].
    Greedy,
}

impl StageKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Constraint,
        Self::LogitBias,
        Self::Ban,
        Self::Repetition,
        Self::FrequencyPresence,
        Self::Dry,
        Self::TopNSigma,
        Self::TopK,
        Self::Typical,
        Self::TopP,
        Self::MinP,
        Self::Xtc,
        Self::Temperature,
        Self::Mirostat,
        Self::Greedy,
    ];

    /// Returns the name that configurations use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Constraint => "constraint",
            Self::LogitBias => "logit_bias",
            Self::Ban => "ban",
            Self::Repetition => "repetition",
            Self::FrequencyPresence => "frequency_presence",
            Self::Dry => "dry",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::Typical => "typical",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Xtc => "xtc",
            Self::Temperature => "temperature",
            Self::Mirostat => "mirostat",
            Self::Greedy => "greedy",
        }
    }

    /// Says whether the stage drops tokens by their likelihood.
    #[must_use]
    pub const fn truncates(self) -> bool {
        matches!(self, Self::TopNSigma | Self::TopK | Self::Typical | Self::TopP | Self::MinP | Self::Xtc)
    }

    /// Says whether nothing can come after the stage.
    #[must_use]
    pub const fn ends_the_chain(self) -> bool {
        matches!(self, Self::Mirostat | Self::Greedy)
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Stage {
    /// Returns the stage's kind.
    #[must_use]
    pub const fn kind(&self) -> StageKind {
        match self {
            Self::Constraint(_) => StageKind::Constraint,
            Self::LogitBias(_) => StageKind::LogitBias,
            Self::Ban(_) => StageKind::Ban,
            Self::Repetition(_) => StageKind::Repetition,
            Self::FrequencyPresence(_) => StageKind::FrequencyPresence,
            Self::Dry(_) => StageKind::Dry,
            Self::TopNSigma(_) => StageKind::TopNSigma,
            Self::TopK(_) => StageKind::TopK,
            Self::Typical(_) => StageKind::Typical,
            Self::TopP(_) => StageKind::TopP,
            Self::MinP(_) => StageKind::MinP,
            Self::Xtc(_) => StageKind::Xtc,
            Self::Temperature(_) => StageKind::Temperature,
            Self::Mirostat(_) => StageKind::Mirostat,
            Self::Greedy {} => StageKind::Greedy,
        }
    }

    /// Says whether the parameters make the stage change nothing.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "off is one exact value")]
    pub fn is_off(&self) -> bool {
        match self {
            Self::Constraint(_) | Self::Mirostat(_) | Self::Greedy {} => false,
            Self::LogitBias(s) => s.bias.is_empty(),
            Self::Ban(s) => s.tokens.is_empty() && s.phrases.is_empty(),
            Self::Repetition(s) => s.penalty == 1.0 || s.last_n == Some(0),
            Self::FrequencyPresence(s) => (s.frequency == 0.0 && s.presence == 0.0) || s.last_n == Some(0),
            Self::Dry(s) => s.multiplier == 0.0 || s.last_n == Some(0),
            Self::TopNSigma(s) => s.n == 0.0,
            Self::TopK(s) => s.k == 0,
            Self::Typical(s) => s.p == 1.0,
            Self::TopP(s) => s.p == 1.0,
            Self::MinP(s) => s.p == 0.0,
            Self::Xtc(s) => s.probability == 0.0 || s.threshold > 0.5,
            Self::Temperature(s) => s.temperature == 1.0 && s.range == 0.0,
        }
    }

    /// Notes every parameter that is out of its range.
    pub(crate) fn check(&self, bad: &mut Vec<String>) {
        let kind = self.kind();
        let mut check = |name: &str, value: f32, is_fine: bool, expected: &str| {
            if !is_fine {
                bad.push(format!("{kind}.{name} is {value}, expected {expected}"));
            }
        };
        match self {
            Self::Constraint(_) | Self::TopK(_) | Self::Greedy {} => {}
            Self::LogitBias(s) => {
                for (token, bias) in &s.bias {
                    check(&format!("bias.{token}"), *bias, (-100.0..=100.0).contains(bias), "-100 to 100");
                }
            }
            Self::Ban(s) => {
                if let Some(phrase) = s.phrases.iter().find(|p| p.is_empty() || p.len() > MAX_PHRASE) {
                    bad.push(format!("ban.phrases holds a text of {} bytes, expected 1 to {MAX_PHRASE}", phrase.len()));
                }
                if s.phrases.len() > MAX_PHRASES {
                    bad.push(format!("ban.phrases holds {} texts, expected at most {MAX_PHRASES}", s.phrases.len()));
                }
            }
            Self::Repetition(s) => {
                check("penalty", s.penalty, s.penalty > 0.0 && s.penalty <= 10.0, "above 0 and at most 10");
            }
            Self::FrequencyPresence(s) => {
                check("frequency", s.frequency, (-2.0..=2.0).contains(&s.frequency), "-2 to 2");
                check("presence", s.presence, (-2.0..=2.0).contains(&s.presence), "-2 to 2");
            }
            Self::Dry(s) => {
                check("multiplier", s.multiplier, (0.0..=100.0).contains(&s.multiplier), "0 to 100");
                check("base", s.base, (1.0..=8.0).contains(&s.base), "1 to 8");
                if !(1..=1000).contains(&s.allowed_length) {
                    bad.push(format!("dry.allowed_length is {}, expected 1 to 1000", s.allowed_length));
                }
                if let Some(breaker) = s.breakers.iter().find(|b| b.is_empty() || b.len() > MAX_PHRASE) {
                    let n = breaker.len();
                    bad.push(format!("dry.breakers holds a text of {n} bytes, expected 1 to {MAX_PHRASE}"));
                }
                if s.breakers.len() > MAX_PHRASES {
                    bad.push(format!("dry.breakers holds {} texts, expected at most {MAX_PHRASES}", s.breakers.len()));
                }
            }
            Self::TopNSigma(s) => check("n", s.n, (0.0..=100.0).contains(&s.n), "0 to 100"),
            Self::Typical(s) => check("p", s.p, s.p > 0.0 && s.p <= 1.0, "above 0 and at most 1"),
            Self::TopP(s) => check("p", s.p, s.p > 0.0 && s.p <= 1.0, "above 0 and at most 1"),
            Self::MinP(s) => check("p", s.p, (0.0..1.0).contains(&s.p), "at least 0 and below 1"),
            Self::Xtc(s) => {
                check("probability", s.probability, (0.0..=1.0).contains(&s.probability), "0 to 1");
                check("threshold", s.threshold, (0.0..=1.0).contains(&s.threshold), "0 to 1");
            }
            Self::Temperature(s) => {
                check("temperature", s.temperature, (0.0..=5.0).contains(&s.temperature), "0 to 5");
                check("range", s.range, (0.0..=5.0).contains(&s.range), "0 to 5");
                check("exponent", s.exponent, s.exponent > 0.0 && s.exponent <= 10.0, "above 0 and at most 10");
            }
            Self::Mirostat(s) => {
                check("tau", s.tau, s.tau > 0.0 && s.tau <= 100.0, "above 0 and at most 100");
                check("eta", s.eta, s.eta > 0.0 && s.eta <= 1.0, "above 0 and at most 1");
            }
        }
    }
}

/// Most bytes of a banned phrase or breaker.
const MAX_PHRASE: usize = 256;
/// Most banned phrases or breakers.
const MAX_PHRASES: usize = 1024;

fn write_bias<S: Serializer>(bias: &BTreeMap<u32, f32>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(bias.iter().map(|(token, bias)| (token.to_string(), bias)))
}

/// Keys are texts, because those of JSON and TOML are.
fn read_bias<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, f32>, D::Error> {
    let texts = BTreeMap::<String, f32>::deserialize(from)?;
    let parsed = texts.into_iter().map(|(token, bias)| match token.parse() {
        Ok(token) => Ok((token, bias)),
        Err(_) => Err(serde::de::Error::custom(format!("bias has the key {token:?}, expected a token id"))),
    });
    parsed.collect()
}
