//! A chain made ready for a model: checked, with its texts turned into tokens.

use std::sync::Arc;

use crate::candidates::COLDEST;
use crate::dry::DryRule;
use crate::history::Reach;
use crate::phrases::Phrase;
use crate::spec::check_stages;
use crate::{ChainError, ChainSpec, MirostatVersion, Stage, StageKind, Vocabulary};

/// One step of a ready chain. Numbers refer to the sampler's windows and phrases.
#[derive(Debug)]
pub(crate) enum Step {
    Bias(Vec<(u32, f32)>),
    Ban(Vec<u32>),
    /// The phrases of `Chain::phrases` in this range.
    BanPhrases(std::ops::Range<usize>),
    Repetition {
        penalty: f32,
        window: usize,
    },
    FrequencyPresence {
        frequency: f32,
        presence: f32,
        window: usize,
    },
    Dry {
        rule: DryRule,
        window: usize,
    },
    #[cfg(feature = "constrained")]
    Constraint,
    TopNSigma(f32),
    TopK(usize),
    Typical(f32),
    TopP(f32),
    MinP {
        p: f32,
        exclusive: bool,
    },
    Xtc {
        probability: f64,
        threshold: f32,
    },
    Temperature(f32),
    DynamicTemperature {
        coldest: f32,
        hottest: f32,
        exponent: f32,
    },
    Mirostat {
        version: MirostatVersion,
        tau: f32,
        eta: f32,
    },
    Greedy,
}

/// A chain made ready for a model. Made once for a request and shared by its candidates' samplers.
#[derive(Debug)]
pub struct Chain {
    pub(crate) steps: Vec<Step>,
    pub(crate) reaches: Vec<Reach>,
    pub(crate) phrases: Vec<Phrase>,
    pub(crate) vocabulary: Option<Arc<Vocabulary>>,
    #[cfg(feature = "constrained")]
    pub(crate) grammar: Option<crate::constrained::Grammar>,
}

impl Chain {
    /// Makes a chain ready. Stages that are off cost nothing. The vocabulary is needed by stages that look at texts:
    /// [`needs_vocabulary`](Self::needs_vocabulary) says whether any does.
    ///
    /// # Errors
    /// [`ChainError`] naming every parameter that is out of its range, and every stage that cannot be had.
    pub fn new(stages: &[Stage], vocabulary: Option<&Arc<Vocabulary>>) -> Result<Self, ChainError> {
        check_stages(stages)?;
        let mut chain = Self {
            steps: Vec::with_capacity(stages.len()),
            reaches: Vec::new(),
            phrases: Vec::new(),
            vocabulary: None,
            #[cfg(feature = "constrained")]
            grammar: None,
        };
        let mut bad = Vec::new();
        if Self::needs_vocabulary(stages) {
            match vocabulary {
                Some(vocabulary) => chain.vocabulary = Some(Arc::clone(vocabulary)),
                None => {
                    let kinds = stages.iter().filter(|stage| looks_at_text(stage)).map(Stage::kind);
                    bad.extend(kinds.map(|kind| format!("{kind} needs the texts of the model's tokens")));
                }
            }
        }
        if bad.is_empty() {
            for stage in stages.iter().filter(|stage| !stage.is_off()) {
                if let Err(problem) = chain.push(stage) {
                    bad.push(problem);
                }
            }
        }
        if !bad.is_empty() {
            return Err(ChainError(bad));
        }
        chain.simplify();
        Ok(chain)
    }

    /// Makes a specified chain ready, as [`new`](Self::new) does its stages.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn from_spec(spec: &ChainSpec, vocabulary: Option<&Arc<Vocabulary>>) -> Result<Self, ChainError> {
        Self::new(&spec.stages(), vocabulary)
    }

    /// Returns the kinds of stages that this build can run: all, but for constraints without the feature `constrained`.
    #[must_use]
    pub fn available() -> Vec<StageKind> {
        let is_built_in = |kind: &StageKind| cfg!(feature = "constrained") || *kind != StageKind::Constraint;
        StageKind::ALL.into_iter().filter(is_built_in).collect()
    }

    /// Says whether any stage looks at the texts of tokens.
    #[must_use]
    pub fn needs_vocabulary(stages: &[Stage]) -> bool {
        stages.iter().any(looks_at_text)
    }

    fn push(&mut self, stage: &Stage) -> Result<(), String> {
        let step = match stage {
            Stage::LogitBias(s) => Step::Bias(s.bias.iter().map(|(token, bias)| (*token, *bias)).collect()),
            Stage::Ban(s) => {
                if let Some(vocabulary) = self.vocabulary.as_ref().filter(|_| !s.phrases.is_empty()) {
                    let first = self.phrases.len();
                    self.phrases.extend(s.phrases.iter().map(|text| Phrase::new(text, vocabulary)));
                    self.steps.push(Step::BanPhrases(first..self.phrases.len()));
                }
                Step::Ban(s.tokens.clone())
            }
            Stage::Repetition(s) => {
                let window = self.window(Reach { last_n: s.last_n, scope: s.scope });
                Step::Repetition { penalty: s.penalty, window }
            }
            Stage::FrequencyPresence(s) => {
                let window = self.window(Reach { last_n: s.last_n, scope: s.scope });
                Step::FrequencyPresence { frequency: s.frequency, presence: s.presence, window }
            }
            Stage::Dry(s) => {
                let window = self.window(Reach { last_n: s.last_n, scope: s.scope });
                let Some(vocabulary) = &self.vocabulary else { return Ok(()) };
                Step::Dry { rule: DryRule::new(s, vocabulary), window }
            }
            #[cfg(feature = "constrained")]
            Stage::Constraint(s) => {
                let Some(vocabulary) = &self.vocabulary else { return Ok(()) };
                self.grammar = Some(crate::constrained::Grammar::new(&s.shape, vocabulary)?);
                Step::Constraint
            }
            #[cfg(not(feature = "constrained"))]
            Stage::Constraint(_) => {
                return Err("constraint needs a build with the feature \"constrained\"".to_owned());
            }
            Stage::TopNSigma(s) => Step::TopNSigma(s.n),
            Stage::TopK(s) => Step::TopK(s.k as usize),
            Stage::Typical(s) => Step::Typical(s.p),
            Stage::TopP(s) => Step::TopP(s.p),
            Stage::MinP(s) => Step::MinP { p: s.p, exclusive: s.exclusive },
            Stage::Xtc(s) => Step::Xtc { probability: f64::from(s.probability), threshold: s.threshold },
            Stage::Temperature(s) if s.range > 0.0 => Step::DynamicTemperature {
                coldest: (s.temperature - s.range).max(0.0),
                hottest: s.temperature + s.range,
                exponent: s.exponent,
            },
            Stage::Temperature(s) => Step::Temperature(s.temperature),
            Stage::Mirostat(s) => Step::Mirostat { version: s.version, tau: s.tau, eta: s.eta },
            Stage::Greedy {} => Step::Greedy,
        };
        self.steps.push(step);
        Ok(())
    }

    /// Returns the number of a window, shared by stages that look back alike.
    fn window(&mut self, reach: Reach) -> usize {
        if let Some(same) = self.reaches.iter().position(|other| *other == reach) {
            return same;
        }
        self.reaches.push(reach);
        self.reaches.len() - 1
    }

    /// Leaves out truncations that cannot matter, because the likeliest token survives each of them and nothing else is
    /// asked for.
    fn simplify(&mut self) {
        let greedy = |step: &Step| match step {
            Step::Greedy => true,
            Step::Temperature(t) => *t < COLDEST,
            _ => false,
        };
        let Some(at) = self.steps.iter().position(greedy) else { return };
        let keeps_the_likeliest = |step: &Step| {
            matches!(
                step,
                Step::TopNSigma(_) | Step::TopK(_) | Step::TopP(_) | Step::MinP { .. } | Step::Temperature(_)
            )
        };
        let first = self.steps[..at].iter().rposition(|step| !keeps_the_likeliest(step)).map_or(0, |last| last + 1);
        self.steps.drain(first..at);
        // One token is left from here on, and only an edit could take it away.
        let cut = first + 1;
        if self.steps[cut..].iter().all(|step| keeps_the_likeliest(step) || greedy(step)) {
            self.steps.truncate(cut);
            self.steps[first] = Step::Greedy;
        }
    }

    /// Says whether the likeliest token is taken without any draw, whatever the seed.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Greedy)) && !self.steps.iter().any(|s| matches!(s, Step::Xtc { .. }))
    }
}

fn looks_at_text(stage: &Stage) -> bool {
    !stage.is_off()
        && match stage {
            Stage::Ban(ban) => !ban.phrases.is_empty(),
            other => matches!(other.kind(), StageKind::Dry | StageKind::Constraint),
        }
}
