//! Choices among recorded replies, and what the gate would have made of them.

use std::collections::HashMap;

use idiolect_backend::Embedding;
use idiolect_uniqueness::lexical::vendi::vendi_score_of_embeddings;
use idiolect_uniqueness::report::pairwise_distances;
use idiolect_uniqueness::{Candidate, GateProfile, Panel, Population, Selector, SelectorConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;

use crate::lessons::{Learned, Lessons, Taught};
use crate::replies::Replies;
use crate::statistics::below;

mod outcome;

use outcome::mean;
pub use outcome::{Outcome, Pick, Spread, gap_closed};

/// Which of our replies is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Choice {
    /// The first of our models', whatever is seen.
    First,
    /// Any: figures are the means of all of them.
    Random,
    /// The best by quality alone ([`Experiment::with_qualities`]), as many candidates as the others choose among; nothing without
    /// qualities.
    BestOfK,
    /// The one farthest from the nearest of what is seen, or from our others where nothing is.
    Farthest,
    /// What [`Selector`] chooses.
    Selector,
    /// What other prompts teach ([`Experiment::with_lessons`]); nothing without.
    Learned,
    /// The one that is farthest from the nearest hidden rival: nobody can do better.
    Oracle,
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::First, Self::Random, Self::BestOfK, Self::Farthest, Self::Selector, Self::Learned, Self::Oracle];

    /// Returns the name used in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Random => "random",
            Self::BestOfK => "best-of-k",
            Self::Farthest => "farthest",
            Self::Selector => "selector",
            Self::Learned => "learned",
            Self::Oracle => "oracle",
        }
    }
}

/// Why there is nothing to choose among.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// There are not as many embeddings as replies.
    #[error("{found} embeddings, expected one for each of {expected} replies")]
    Embeddings {
        /// Replies.
        expected: usize,
        /// Embeddings.
        found: usize,
    },
    /// A model of ours is in no line.
    #[error("no reply is by {model}; there are {known}")]
    Unknown {
        /// The model.
        model: String,
        /// Those that there are.
        known: String,
    },
    /// A model of ours is named twice, or none is.
    #[error("ours are {0:?}, expected different models, one at least")]
    Own(Vec<String>),
    /// All of ours never answer the same prompt as a rival.
    #[error("there is no prompt that all of ours and a rival answer")]
    NoPrompt,
}

/// Replies of ours to a prompt, and those of everybody else.
#[derive(Clone, Debug)]
struct Case {
    prompt: String,
    /// Ours, then the rivals', by their places among all replies.
    replies: Vec<usize>,
    /// Between all of them.
    distances: Vec<Vec<f32>>,
    /// Of each of ours whether it belongs to none of the classes that the rivals' replies fall into.
    novel: Vec<bool>,
}

/// A population on record, some models of which are ours.
#[derive(Clone, Debug)]
pub struct Experiment<'a> {
    replies: &'a Replies,
    embeddings: &'a [Embedding],
    own: &'a [String],
    encoder: String,
    profile: GateProfile,
    qualities: Option<&'a [f32]>,
    criteria: Option<&'a [Option<f64>]>,
    lessons: Option<&'a Lessons<'a>>,
    taught: Option<&'a Taught>,
    cases: Vec<Case>,
}

impl<'a> Experiment<'a> {
    /// Sets an experiment up: `own` are our models, of which the first is what would be sent without a choice, and everybody else
    /// is a rival. `embeddings` has one for each reply, by the validators' encoder all-mpnet-base-v2 unless
    /// [`with_encoder`](Self::with_encoder) says otherwise. Prompts that not all of ours answer are left out.
    ///
    /// # Errors
    /// Any [`ExperimentError`].
    pub fn new(
        replies: &'a Replies,
        embeddings: &'a [Embedding],
        own: &'a [String],
        profile: GateProfile,
    ) -> Result<Self, ExperimentError> {
        let all = replies.all();
        if embeddings.len() != all.len() {
            return Err(ExperimentError::Embeddings { expected: all.len(), found: embeddings.len() });
        }
        check_own(own)?;
        if let Some(model) = own.iter().find(|model| all.iter().all(|reply| reply.model != **model)) {
            let mut known: Vec<&str> = all.iter().map(|reply| reply.model.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(ExperimentError::Unknown { model: model.clone(), known: known.join(", ") });
        }
        let mut cases = Vec::new();
        for (prompt, indices) in replies.by_prompt() {
            let by_model: HashMap<&str, usize> = indices.iter().map(|&i| (all[i].model.as_str(), i)).collect();
            let ours: Option<Vec<usize>> = own.iter().map(|model| by_model.get(model.as_str()).copied()).collect();
            let Some(mut members) = ours else { continue };
            members.extend(indices.iter().filter(|&&i| !own.contains(&all[i].model)));
            if members.len() == own.len() {
                continue;
            }
            let of_case: Vec<Embedding> = members.iter().map(|&i| embeddings[i].clone()).collect();
            let distances = pairwise_distances(&of_case);
            let is_same = |a: usize, b: usize| is_same(&profile, distances[a][b]);
            let founders = founders(own.len()..members.len(), &is_same);
            let novel = (0..own.len()).map(|reply| !founders.iter().any(|&first| is_same(reply, first))).collect();
            cases.push(Case { prompt: prompt.to_owned(), replies: members, distances, novel });
        }
        if cases.is_empty() {
            return Err(ExperimentError::NoPrompt);
        }
        let encoder = "all-mpnet-base-v2".to_owned();
        let (qualities, criteria, lessons, taught) = (None, None, None, None);
        Ok(Self { replies, embeddings, own, encoder, profile, qualities, criteria, lessons, taught, cases })
    }

    /// Returns the same experiment with fewer models of ours: the others are nobody's, so that prompts and rivals stay as they are.
    ///
    /// # Errors
    /// [`ExperimentError::Own`] and, of a model that is none of ours, [`ExperimentError::Unknown`].
    pub fn narrowed(&self, own: &'a [String]) -> Result<Self, ExperimentError> {
        check_own(own)?;
        let place = |model: &String| self.own.iter().position(|other| other == model);
        let unknown = |model: &String| ExperimentError::Unknown { model: model.clone(), known: self.own.join(", ") };
        let kept: Vec<usize> =
            own.iter().map(|model| place(model).ok_or_else(|| unknown(model))).collect::<Result<_, _>>()?;
        let narrow = |case: &Case| {
            let members: Vec<usize> = kept.iter().copied().chain(self.own.len()..case.replies.len()).collect();
            Case {
                prompt: case.prompt.clone(),
                replies: members.iter().map(|&i| case.replies[i]).collect(),
                distances: members.iter().map(|&i| members.iter().map(|&j| case.distances[i][j]).collect()).collect(),
                novel: kept.iter().map(|&i| case.novel[i]).collect(),
            }
        };
        let cases = self.cases.iter().map(narrow).collect();
        Ok(Self { own, cases, ..self.clone() })
    }

    /// Names the encoder that made the embeddings: the selector knows the figures of some.
    #[must_use]
    pub fn with_encoder(self, name: impl Into<String>) -> Self {
        Self { encoder: name.into(), ..self }
    }

    /// Gives the selector an estimate of each reply's quality, in [0, 1], in the order of all replies. Without any all are
    /// alike.
    #[must_use]
    pub fn with_qualities(self, qualities: &'a [f32]) -> Self {
        Self { qualities: Some(qualities), ..self }
    }

    /// Says what the criteria of its prompt take of each reply, in [0, 1] and in the order of all replies, for reports only; nothing where the
    /// prompt has none.
    #[must_use]
    pub fn with_criteria(self, criteria: &'a [Option<f64>]) -> Self {
        Self { criteria: Some(criteria), ..self }
    }

    /// Lets [`Choice::Learned`] rest on what other prompts of the same record teach.
    #[must_use]
    pub fn with_lessons(self, lessons: &'a Lessons<'a>) -> Self {
        Self { lessons: Some(lessons), ..self }
    }

    /// Lets [`Choice::Selector`] use what other prompts of the same record teach, as a miner does that was given
    /// [`Lessons::teach`].
    #[must_use]
    pub fn with_taught(self, taught: &'a Taught) -> Self {
        Self { taught: Some(taught), ..self }
    }

    /// Returns the prompts that count.
    pub fn prompts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.cases.iter().map(|case| case.prompt.as_str())
    }

    /// Chooses for each prompt with each of `n_panels` panels of at most `n_visible` rivals, drawn by the seed: the same ones
    /// whatever the choice. Without visible rivals there is one panel, the empty one.
    #[must_use]
    pub fn run_with(&self, choice: Choice, n_visible: usize, n_panels: usize, seed: u64) -> Outcome {
        let n_panels = if n_visible == 0 { 1 } else { n_panels };
        let learned = self.lessons.filter(|_| choice == Choice::Learned);
        let learned = learned.map(|lessons| lessons.learn(self.own, n_visible, seed));
        let learned = learned.as_ref();
        let cases = self.cases.iter().enumerate();
        let picks = cases.flat_map(|(index, case)| {
            (0..n_panels).filter_map(move |panel| {
                let visible = self.visible(case, index, n_visible, panel, seed);
                self.pick(choice, learned, index, case, &visible)
            })
        });
        Outcome { picks: picks.collect() }
    }

    /// As [`run_with`](Self::run_with), blind: no rival is seen.
    #[must_use]
    pub fn run(&self, choice: Choice, n_panels: usize, seed: u64) -> Outcome {
        self.run_with(choice, 0, n_panels, seed)
    }

    /// Draws rivals that are seen, by their places in the case. One at least stays hidden.
    fn visible(&self, case: &Case, index: usize, n_visible: usize, panel: usize, seed: u64) -> Vec<usize> {
        let mut rivals: Vec<usize> = (self.own.len()..case.replies.len()).collect();
        let n_visible = n_visible.min(rivals.len() - 1);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(((index as u64) << 32) | panel as u64);
        for i in 0..n_visible {
            let other = i + below(&mut random, rivals.len() - i);
            rivals.swap(i, other);
        }
        rivals.truncate(n_visible);
        rivals
    }

    fn pick(
        &self,
        choice: Choice,
        learned: Option<&Learned<'_>>,
        prompt: usize,
        case: &Case,
        visible: &[usize],
    ) -> Option<Pick> {
        let n_own = self.own.len();
        let hidden: Vec<usize> = (n_own..case.replies.len()).filter(|i| !visible.contains(i)).collect();
        let nearest = |own: usize, among: &[usize]| {
            among.iter().map(|&other| case.distances[own][other]).min_by(f32::total_cmp).unwrap_or(1.0)
        };
        let farthest_from = |among: &dyn Fn(usize) -> Vec<usize>| {
            // Of equal ones the first.
            let distances: Vec<f32> = (0..n_own).map(|own| nearest(own, &among(own))).collect();
            (0..n_own).rev().max_by(|&a, &b| distances[a].total_cmp(&distances[b]))
        };
        let chosen = match choice {
            Choice::First => Some(0),
            Choice::Random => None,
            Choice::BestOfK => {
                let qualities = self.qualities?;
                let quality = |own: &usize| qualities[case.replies[*own]];
                (0..n_own).rev().max_by(|a, b| quality(a).total_cmp(&quality(b)))
            }
            Choice::Farthest if visible.is_empty() => {
                farthest_from(&|own| (0..n_own).filter(|&other| other != own).collect())
            }
            Choice::Farthest => farthest_from(&|_| visible.to_vec()),
            Choice::Oracle => farthest_from(&|_| hidden.clone()),
            Choice::Selector => Some(self.select(case, visible)?),
            Choice::Learned => Some(self.best_learned(learned?, case, visible)?),
        };
        let masked = |own: usize| f64::from(u8::from(self.is_same(nearest(own, &hidden))));
        let novel = |own: usize| f64::from(u8::from(case.novel[own]));
        let quality = self.qualities.map(|qualities| |own: usize| f64::from(qualities[case.replies[own]]));
        let mean = |of: &dyn Fn(usize) -> f64| match chosen {
            Some(own) => of(own),
            None => (0..n_own).map(of).sum::<f64>() / n_own as f64,
        };
        let criteria = |own: usize| self.criteria?.get(case.replies[own]).copied().flatten();
        let label = |own: usize| self.replies.all()[case.replies[own]].label.map(f64::from);
        let labels: Option<Vec<f64>> = (0..n_own).map(label).collect();
        Some(Pick {
            prompt,
            chosen,
            masked: mean(&masked),
            distance: mean(&|own| f64::from(nearest(own, &hidden))),
            novel: mean(&novel),
            quality: quality.map(|quality| mean(&quality)),
            // Of one prompt all have some or none has.
            criteria: criteria(0).map(|_| mean(&|own| criteria(own).unwrap_or(0.0))),
            label: match chosen {
                Some(own) => label(own),
                None => labels.map(|labels| labels.iter().sum::<f64>() / n_own as f64),
            },
            first_label: label(0),
        })
    }

    fn is_same(&self, distance: f32) -> bool {
        is_same(&self.profile, distance)
    }

    /// Returns how different our models' replies to each prompt are from each other.
    #[must_use]
    pub fn spread(&self) -> Vec<Spread> {
        let of_case = |case: &Case| {
            let own = 0..self.own.len();
            let pairs = own.clone().flat_map(|a| (0..a).map(move |b| (a, b)));
            let distances: Vec<f64> = pairs.map(|(a, b)| f64::from(case.distances[a][b])).collect();
            let embeddings: Vec<Embedding> =
                own.clone().map(|place| self.embeddings[case.replies[place]].clone()).collect();
            Spread {
                n_distinct: founders(own, &|a, b| self.is_same(case.distances[a][b])).len(),
                pairwise: (!distances.is_empty()).then(|| mean(&distances)),
                vendi: vendi_score_of_embeddings(&embeddings),
            }
        };
        self.cases.iter().map(of_case).collect()
    }

    fn best_learned(&self, learned: &Learned<'_>, case: &Case, visible: &[usize]) -> Option<usize> {
        let places = |of: &[usize]| of.iter().map(|&place| case.replies[place]).collect::<Vec<usize>>();
        let scores = learned.scores(&case.prompt, &case.replies[..self.own.len()], &places(visible));
        // Of equal ones the first.
        (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
    }

    fn select(&self, case: &Case, visible: &[usize]) -> Option<usize> {
        let embedding = |place: usize| &self.embeddings[case.replies[place]];
        let mut panel = Panel::new(self.encoder.clone(), embedding(0).len());
        for &place in visible {
            panel.push(self.replies.all()[case.replies[place]].model.as_str(), embedding(place));
        }
        let candidates: Vec<Candidate<'_>> = (0..self.own.len())
            .map(|own| Candidate {
                embedding: Some(embedding(own)),
                quality: self.qualities.map_or(0.5, |qualities| qualities[case.replies[own]]),
                source: base(&self.own[own]),
                distinctiveness: self.taught.and_then(|taught| taught.of(case.replies[own])),
            })
            .collect();
        let plain: Vec<usize> = (0..self.own.len()).filter(|&own| base(&self.own[own]) == self.own[own]).collect();
        let n_rivals = case.replies.len() - self.own.len();
        let population = Population::new(&self.encoder).with_rivals(n_rivals).with_plain(&plain);
        let population = if visible.is_empty() { population } else { population.with_panel(&panel).ok()? };
        let config = SelectorConfig { profile: self.profile.clone(), ..SelectorConfig::default() };
        Some(Selector::new(config).select(&candidates, &population)?.chosen)
    }
}

/// Says whether the gate takes two replies at a distance for the same.
fn is_same(profile: &GateProfile, distance: f32) -> bool {
    profile.product(profile.batch.at(distance), None) <= profile.pass_above
}

/// Refuses sets of our models that are empty or name one twice.
fn check_own(own: &[String]) -> Result<(), ExperimentError> {
    let is_twice = |(i, model): (usize, &String)| own[..i].contains(model);
    if own.is_empty() || own.iter().enumerate().any(is_twice) {
        return Err(ExperimentError::Own(own.to_vec()));
    }
    Ok(())
}

/// Returns the first members of the classes that replies fall into, taken in their order.
fn founders(replies: std::ops::Range<usize>, is_same: &dyn Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut founders: Vec<usize> = Vec::new();
    for reply in replies {
        if !founders.iter().any(|&first| is_same(reply, first)) {
            founders.push(reply);
        }
    }
    founders
}

/// Returns the model behind a name: `X_concise` is X with another instruction.
fn base(model: &str) -> &str {
    model.split_once('_').map_or(model, |(base, _)| base)
}

#[cfg(test)]
mod tests;
