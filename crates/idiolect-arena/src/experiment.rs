//! Choices among recorded replies, and what the gate would have made of them.

use std::collections::HashMap;

use idiolect_backend::Embedding;
use idiolect_uniqueness::lexical::vendi::vendi_score_of_embeddings;
use idiolect_uniqueness::report::pairwise_distances;
use idiolect_uniqueness::{Candidate, GateProfile, Panel, Population, Selector, SelectorConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;

use crate::lessons::{Learned, Lessons};
use crate::replies::Replies;
use crate::statistics::below;

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
    lessons: Option<&'a Lessons<'a>>,
    cases: Vec<Case>,
}

/// One choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pick {
    /// The prompt's place among [`Experiment::prompts`].
    pub prompt: usize,
    /// Which of ours was chosen; `None` of [`Choice::Random`], whose figures are means.
    pub chosen: Option<usize>,
    /// Whether the hidden rivals mask it, 0 or 1.
    pub masked: f64,
    /// Distance to the nearest hidden rival.
    pub distance: f64,
    /// Whether it says what no rival says, hidden or seen: those are put into classes, each of what the gate takes for the same as its first
    /// member, and it belongs to none; 0 or 1.
    pub novel: f64,
    /// The quality that was given, where any was.
    pub quality: Option<f64>,
    /// The judge's label, where there is one.
    pub label: Option<f64>,
    /// That of our first model's reply.
    pub first_label: Option<f64>,
}

/// How different our models' replies to a prompt are from each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Of how many classes they are, each of what the gate takes for the same as its first member (`distinct_k` of NoveltyBench, with
    /// the gate in place of its classifier).
    pub n_distinct: usize,
    /// Mean distance between two of them; `None` of one.
    pub pairwise: Option<f64>,
    /// Their Vendi score, the effective number of different ones; `None` where no embedding has a direction.
    pub vendi: Option<f64>,
}

/// What came of one way to choose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Each prompt with each panel.
    pub picks: Vec<Pick>,
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
        let is_twice = |(i, model): (usize, &String)| own[..i].contains(model);
        if own.is_empty() || own.iter().enumerate().any(is_twice) {
            return Err(ExperimentError::Own(own.to_vec()));
        }
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
            cases.push(Case { prompt: prompt.to_owned(), replies: members, distances: pairwise_distances(&of_case) });
        }
        if cases.is_empty() {
            return Err(ExperimentError::NoPrompt);
        }
        let encoder = "all-mpnet-base-v2".to_owned();
        Ok(Self { replies, embeddings, own, encoder, profile, qualities: None, lessons: None, cases })
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

    /// Lets [`Choice::Learned`] rest on what other prompts of the same record teach.
    #[must_use]
    pub fn with_lessons(self, lessons: &'a Lessons<'a>) -> Self {
        Self { lessons: Some(lessons), ..self }
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
        let is_same = |a: usize, b: usize| self.is_same(case.distances[a][b]);
        let founders = founders(n_own..case.replies.len(), &is_same);
        let novel = |own: usize| f64::from(u8::from(!founders.iter().any(|&first| is_same(own, first))));
        let quality = self.qualities.map(|qualities| |own: usize| f64::from(qualities[case.replies[own]]));
        let mean = |of: &dyn Fn(usize) -> f64| match chosen {
            Some(own) => of(own),
            None => (0..n_own).map(of).sum::<f64>() / n_own as f64,
        };
        let label = |own: usize| self.replies.all()[case.replies[own]].label.map(f64::from);
        let labels: Option<Vec<f64>> = (0..n_own).map(label).collect();
        Some(Pick {
            prompt,
            chosen,
            masked: mean(&masked),
            distance: mean(&|own| f64::from(nearest(own, &hidden))),
            novel: mean(&novel),
            quality: quality.map(|quality| mean(&quality)),
            label: match chosen {
                Some(own) => label(own),
                None => labels.map(|labels| labels.iter().sum::<f64>() / n_own as f64),
            },
            first_label: label(0),
        })
    }

    /// Says whether the gate takes two replies at a distance for the same.
    fn is_same(&self, distance: f32) -> bool {
        self.profile.product(self.profile.batch.at(distance), None) <= self.profile.pass_above
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

impl Outcome {
    /// Returns the share of replies that the hidden rivals mask, each prompt counting the same.
    #[must_use]
    pub fn share_masked(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.masked)))
    }

    /// Returns the mean distance to the nearest hidden rival.
    #[must_use]
    pub fn distance(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.distance)))
    }

    /// Returns the share of replies that say what no rival says.
    #[must_use]
    pub fn share_novel(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.novel)))
    }

    /// Returns the mean quality of what was sent; not a number where none was given.
    #[must_use]
    pub fn quality(&self) -> f64 {
        mean(&self.by_prompt(|pick| pick.quality))
    }

    /// Returns how much better than our first model's reply the judge finds what was sent, in the mean of the prompts that have
    /// labels; not a number where none has.
    #[must_use]
    pub fn label_gained(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.label? - pick.first_label?)))
    }

    /// Returns a figure's mean for each prompt that has it, in their order.
    #[must_use]
    pub fn by_prompt(&self, figure: impl Fn(&Pick) -> Option<f64>) -> Vec<f64> {
        let mut means = Vec::new();
        for picks in self.picks.chunk_by(|a, b| a.prompt == b.prompt) {
            let values: Vec<f64> = picks.iter().filter_map(&figure).collect();
            if !values.is_empty() {
                means.push(mean(&values));
            }
        }
        means
    }
}

/// Returns how much of the way from a random choice to the oracle's a choice goes; not a number where there is none to go.
#[must_use]
pub fn gap_closed(random: f64, choice: f64, oracle: f64) -> f64 {
    if random > oracle { (random - choice) / (random - oracle) } else { f64::NAN }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of ours, at angles in degrees, and rivals at others.
    fn population(n_prompts: usize) -> (Replies, Vec<Embedding>) {
        let degrees: [(&str, f32); 8] = [
            ("a", 0.0),
            ("a_x", 40.0),
            ("a_y", 80.0),
            ("r1", 2.0),
            ("r2", 41.0),
            ("r3", 3.0),
            ("r4", 120.0),
            ("r5", 1.0),
        ];
        let (mut text, mut embeddings) = (String::new(), Vec::new());
        for prompt in 0..n_prompts {
            for (model, angle) in degrees {
                let label = if model == "a" { 0.5 } else { 0.4 };
                text += &format!("{{\"p\": {prompt}, \"m\": \"{model}\", \"t\": \"{model}\", \"q\": {label}}}\n");
                let angle = angle.to_radians();
                embeddings.push(vec![angle.cos(), angle.sin()]);
            }
        }
        (Replies::read(&mut text.as_bytes()).unwrap(), embeddings)
    }

    fn own() -> Vec<String> {
        ["a", "a_x", "a_y"].map(str::to_owned).to_vec()
    }

    #[test]
    fn who_sees_more_is_masked_less() {
        let (replies, embeddings) = population(6);
        let own = own();
        let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
        assert_eq!(experiment.prompts().len(), 6);
        assert!(experiment.run(Choice::Learned, 1, 0).picks.is_empty(), "no lessons, no choice");
        let share = |choice| experiment.run_with(choice, 3, 10, 1).share_masked();
        assert!(share(Choice::First) > 0.9);
        assert_eq!(share(Choice::Oracle), 0.0);
        let random = share(Choice::Random);
        assert!((0.4..0.7).contains(&random), "{random}");
        for choice in [Choice::Farthest, Choice::Selector] {
            assert!(share(choice) < 0.2, "{choice:?}: {}", share(choice));
            assert!(gap_closed(random, share(choice), 0.0) > 0.6);
        }
        let outcome = experiment.run_with(Choice::Oracle, 3, 10, 1);
        assert!((-0.11..-0.05).contains(&outcome.label_gained()), "{}", outcome.label_gained());
        assert!(outcome.distance() > 0.1 && outcome.picks.len() == 60);
    }

    #[test]
    fn panels_are_the_same_for_all_choices_and_leave_somebody_hidden() {
        let (replies, embeddings) = population(2);
        let own = own();
        let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
        let distances = |choice, seed| {
            experiment.run_with(choice, 2, 4, seed).picks.iter().map(|pick| pick.distance).collect::<Vec<_>>()
        };
        assert_eq!(distances(Choice::First, 1), distances(Choice::First, 1));
        assert_ne!(distances(Choice::First, 1), distances(Choice::First, 2));
        let all_but_one = experiment.run_with(Choice::First, 99, 3, 1);
        assert!(all_but_one.picks.iter().all(|pick| pick.distance < 1.0));
        assert_eq!(experiment.run(Choice::First, 9, 1).picks.len(), 2);
    }

    #[test]
    fn what_cannot_be_an_experiment_is_said() {
        let (replies, embeddings) = population(1);
        let with = |own: &[&str], embeddings: &[Embedding]| {
            let own: Vec<String> = own.iter().map(|model| (*model).to_owned()).collect();
            let found = Experiment::new(&replies, embeddings, &own, GateProfile::default());
            found.map(drop).unwrap_err().to_string()
        };
        assert_eq!(with(&["a"], &embeddings[1..]), "7 embeddings, expected one for each of 8 replies");
        assert!(with(&["b"], &embeddings).contains("no reply is by b; there are a, a_x, a_y, r1"));
        assert!(with(&[], &embeddings).contains("one at least"));
        assert!(with(&["a", "a"], &embeddings).contains("expected different models"));
        let everybody = ["a", "a_x", "a_y", "r1", "r2", "r3", "r4", "r5"];
        assert_eq!(with(&everybody, &embeddings), "there is no prompt that all of ours and a rival answer");
    }

    #[test]
    fn quality_alone_takes_the_best_whatever_rivals_say() {
        let (replies, embeddings) = population(3);
        let own = own();
        let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
        assert!(experiment.run(Choice::BestOfK, 1, 0).picks.is_empty(), "no qualities, no choice");
        let of_model = |model: &str| match model {
            "a" => 0.9,
            "a_x" => 0.5,
            _ => 0.1,
        };
        let qualities: Vec<f32> = replies.all().iter().map(|reply| of_model(&reply.model)).collect();
        let outcome = experiment.clone().with_qualities(&qualities).run(Choice::BestOfK, 1, 0);
        assert!(outcome.picks.iter().all(|pick| pick.chosen == Some(0)));
        assert!((outcome.quality() - 0.9).abs() < 1e-6);
        assert_eq!((outcome.share_masked(), outcome.share_novel()), (1.0, 0.0));
        let far = experiment.run(Choice::Oracle, 1, 0);
        assert_eq!((far.share_novel(), far.quality().is_nan()), (1.0, true));
    }

    #[test]
    fn ours_differ_from_each_other() {
        let (replies, embeddings) = population(2);
        let own = own();
        let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
        let spread = experiment.spread();
        assert_eq!((spread.len(), spread[0].n_distinct), (2, 3));
        let cosines = [40.0_f64, 40.0, 80.0].map(|angle| angle.to_radians().cos());
        assert!((spread[0].pairwise.unwrap() - (1.0 - cosines.iter().sum::<f64>() / 3.0)).abs() < 1e-6);
        assert!(spread[0].vendi.unwrap() > 1.5 && spread[0].vendi.unwrap() < 3.0);
        let alike = ["r1", "r3", "r5"].map(str::to_owned);
        let experiment = Experiment::new(&replies, &embeddings, &alike, GateProfile::TEXT_PROMPTING_2_1).unwrap();
        assert_eq!(experiment.spread()[0].n_distinct, 1);
    }

    #[test]
    fn gaps_that_are_none_have_no_share() {
        assert_eq!(gap_closed(0.5, 0.25, 0.0), 0.5);
        assert!(gap_closed(0.2, 0.1, 0.2).is_nan());
    }
}
