//! What other prompts teach about which of several replies the gate masks.
//!
//! Two things are learnt from whole populations on record, and never from the prompt that a choice is made for: prompts are dealt into
//! folds, and what is said of a prompt was learnt from the folds that it is not in.
//!
//! *Typicality.* The logarithm of a reply's distance to the nearest of all others, less its mean over the prompt, is predicted by ridge
//! regression from its embedding, from what can be counted in its text (length, layout, turns of speech) and from how near it is to the
//! prompt, where that is known. It needs no rival's reply to the same prompt.
//!
//! *Ranking.* Which of a few candidates passes is predicted by a Bradley-Terry model over pairs of one that passes and one that
//! does not. Blind it weighs typicality and the logarithms of the nearest and of the mean distance to the other candidates; with rivals seen, typicality and
//! the nearest, second-nearest, four nearest and mean of the distances to those. It is fitted to many sets of models that are as much
//! alike as ours are, ours among them, since one set on its own is too little to learn from.
//!
//! *Labels.* Where the record has a judge's labels, the mean label of each model in the other folds counts too: a model that is unlike all others
//! because it is worse is no gain.

mod linear;
mod ranking;
mod teaching;
mod typicality;

use std::collections::HashMap;

use idiolect_backend::Embedding;
use idiolect_uniqueness::GateProfile;
use idiolect_uniqueness::distinctiveness::Prompt;
use idiolect_uniqueness::report::pairwise_distances;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use crate::replies::Replies;
use crate::statistics::below;
use ranking::{Group, Ranking};
pub use teaching::{Taught, TeachError};
use typicality::Weights;

/// Parts that prompts are dealt into.
pub const N_FOLDS: usize = 10;

/// Distances below this are equally near: repeats differ by rounding only.
const NEAREST: f64 = 0.001;
/// Sets of models that a ranking is fitted to, and sets that they are picked from.
const N_SETS: usize = 30;
const N_DRAWN_SETS: usize = 3000;
/// Models near to a first one that half of the sets are drawn from.
const N_NEAR: usize = 8;
/// How many units of log-odds a label of 1 is worth over one of 0. With 2 the choice keeps most of the labels that one by the gate alone gives up,
/// and gives up little of the gate (docs/benchmarks.md).
const LABEL_WEIGHT: f64 = 2.0;
/// Panels that a prompt is learnt with.
const N_PANELS: usize = 3;

/// Populations to learn from.
#[derive(Debug)]
pub struct Lessons<'a> {
    profile: GateProfile,
    models: Vec<&'a str>,
    embeddings: &'a [Embedding],
    lessons: Vec<Lesson<'a>>,
    weights: Weights,
    /// By the fold left out, the typicality of each reply by a fit in which neither that fold nor the reply's own had a part.
    typicality: Vec<Vec<f64>>,
    /// By the fold left out, the mean label of each model.
    labels: Vec<Vec<f64>>,
}

/// How the gate sees replies.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// One for each reply: what its distances are between.
    pub embeddings: &'a [Embedding],
    /// What they are multiplied by, above 0: 1 for the validators' own encoder, else
    /// [`distance_scale`](idiolect_uniqueness::selector::distance_scale).
    pub scale: f32,
}

impl Gate<'_> {
    fn distances(&self, embeddings: &[Embedding]) -> Vec<Vec<f32>> {
        let mut distances = pairwise_distances(embeddings);
        distances.iter_mut().flatten().for_each(|distance| *distance = (*distance * self.scale).min(1.0));
        distances
    }
}

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The prompt.
    pub text: String,
    /// Its place in the replies' space.
    pub embedding: Embedding,
}

impl Asked {
    fn prompt(&self) -> Prompt<'_> {
        Prompt { text: &self.text, embedding: &self.embedding }
    }
}

/// Everybody's replies to one prompt.
#[derive(Debug)]
struct Lesson<'a> {
    prompt: &'a str,
    fold: usize,
    /// Replies, by their places in the record.
    replies: Vec<usize>,
    /// The model of each, by its place among all models.
    models: Vec<usize>,
    distances: Vec<Vec<f32>>,
}

/// What was learnt for some models of ours and a number of rivals that are seen.
#[derive(Debug)]
pub struct Learned<'a> {
    lessons: &'a Lessons<'a>,
    /// By the fold left out.
    rankings: Vec<Ranking>,
    by_prompt: HashMap<&'a str, usize>,
    is_blind: bool,
}

impl<'a> Lessons<'a> {
    /// Studies a record; `embeddings` has one for each reply, `asked` the prompts by their ids, as far as they are known. The seed deals the
    /// prompts into folds.
    #[must_use]
    pub fn new(
        replies: &'a Replies,
        embeddings: &'a [Embedding],
        asked: &HashMap<String, Asked>,
        profile: GateProfile,
        seed: u64,
    ) -> Self {
        Self::by_gate(replies, embeddings, Gate { embeddings, scale: 1.0 }, asked, profile, seed)
    }

    /// As [`new`](Self::new), where the gate sees replies otherwise: whatever is learnt is learnt of `embeddings`.
    #[must_use]
    pub fn by_gate(
        replies: &'a Replies,
        embeddings: &'a [Embedding],
        gate: Gate<'_>,
        asked: &HashMap<String, Asked>,
        profile: GateProfile,
        seed: u64,
    ) -> Self {
        let all = replies.all();
        let mut models: Vec<&str> = all.iter().map(|reply| reply.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let by_prompt: Vec<(&str, Vec<usize>)> = replies.by_prompt().into_iter().collect();
        let mut order: Vec<usize> = (0..by_prompt.len()).collect();
        shuffle(&mut order, &mut random);
        let mut lessons: Vec<Lesson<'a>> = Vec::with_capacity(by_prompt.len());
        for (nth, &index) in order.iter().enumerate() {
            let (prompt, members) = &by_prompt[index];
            let of_members: Vec<Embedding> =
                members.iter().map(|&i| gate.embeddings.get(i).cloned().unwrap_or_default()).collect();
            lessons.push(Lesson {
                prompt,
                fold: nth % N_FOLDS,
                models: members.iter().map(|&i| place(&models, &all[i].model)).collect(),
                distances: gate.distances(&of_members),
                replies: members.clone(),
            });
        }
        let (weights, typicality) = typicality::predict(replies, embeddings, asked, &lessons);
        let labels = (0..N_FOLDS).map(|fold| mean_labels(replies, &lessons, models.len(), fold)).collect();
        Self { profile, models, embeddings, lessons, weights, typicality, labels }
    }

    /// Learns to choose among replies of some models where so many rivals are seen.
    #[must_use]
    pub fn learn(&'a self, own: &[String], n_visible: usize, seed: u64) -> Learned<'a> {
        let mut own: Vec<usize> = own.iter().map(|model| place(&self.models, model)).collect();
        own.sort_unstable();
        own.dedup();
        own.retain(|&model| model < self.models.len());
        let rankings = (0..N_FOLDS).map(|fold| self.ranking(fold, &own, n_visible, seed)).collect();
        let by_prompt = self.lessons.iter().enumerate().map(|(index, lesson)| (lesson.prompt, index)).collect();
        Learned { lessons: self, rankings, by_prompt, is_blind: n_visible == 0 }
    }

    fn ranking(&self, fold: usize, own: &[usize], n_visible: usize, seed: u64) -> Ranking {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(fold as u64);
        let sets = self.sets_like(own, fold, &mut random);
        let mut groups: Vec<Group> = Vec::new();
        for lesson in self.lessons.iter().filter(|lesson| lesson.fold != fold) {
            for set in &sets {
                let candidates: Vec<usize> =
                    set.iter().filter_map(|model| lesson.models.iter().position(|other| other == model)).collect();
                let mut rivals: Vec<usize> =
                    (0..lesson.models.len()).filter(|i| !set.contains(&lesson.models[*i])).collect();
                if candidates.len() < set.len() || rivals.len() <= n_visible {
                    continue;
                }
                for _ in 0..if n_visible == 0 { 1 } else { N_PANELS } {
                    shuffle(&mut rivals, &mut random);
                    let (visible, hidden) = rivals.split_at(n_visible);
                    let figures = self.figures(lesson, fold, &candidates, visible);
                    let passes = candidates.iter().map(|&i| !self.is_masked(lesson, i, hidden));
                    groups.push(figures.into_iter().zip(passes).collect());
                }
            }
        }
        Ranking::fit(&groups, if n_visible == 0 { 3 } else { 6 })
    }

    /// Returns sets of as many models, ours first, and behind it those whose replies are about as near to each other.
    fn sets_like(&self, own: &[usize], fold: usize, random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let n = self.models.len();
        let mut sets = vec![own.to_vec()];
        if own.len() < 2 || n <= own.len() {
            return sets;
        }
        let between = &self.mean_distances(fold);
        let within = |set: &[usize]| {
            let pairs = set.iter().enumerate().flat_map(|(k, &a)| set[..k].iter().map(move |&b| between[a][b]));
            let (sum, count) = pairs.fold((0.0, 0.0), |(sum, count), distance| (sum + distance, count + 1.0));
            sum / count
        };
        let wanted = within(own);
        let mut drawn: Vec<(f64, Vec<usize>)> = Vec::with_capacity(N_DRAWN_SETS);
        for nth in 0..N_DRAWN_SETS {
            let mut pool: Vec<usize> = (0..n).collect();
            shuffle(&mut pool, random);
            // By chance alone few sets are as alike as the variants of one model.
            if nth % 2 == 0 && own.len() <= N_NEAR {
                let first = pool[0];
                pool[1..].sort_by(|&a, &b| between[first][a].total_cmp(&between[first][b]).then(a.cmp(&b)));
                let n_near = N_NEAR.min(n - 1);
                shuffle(&mut pool[1..=n_near], random);
            }
            let mut set = pool[..own.len()].to_vec();
            set.sort_unstable();
            drawn.push(((within(&set) - wanted).abs(), set));
        }
        drawn.sort_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.cmp(y)));
        for (_, set) in drawn {
            if sets.len() >= N_SETS {
                break;
            }
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        sets
    }

    /// Returns how far the replies of any two models are from each other in the mean of all prompts but a fold's, as
    /// logarithms less the mean of the prompt.
    #[expect(clippy::cast_precision_loss, reason = "counts of replies")]
    fn mean_distances(&self, fold: usize) -> Vec<Vec<f64>> {
        let n = self.models.len();
        let (mut sums, mut counts) = (vec![vec![0.0; n]; n], vec![vec![0.0_f64; n]; n]);
        for lesson in self.lessons.iter().filter(|lesson| lesson.fold != fold) {
            let logarithms: Vec<Vec<f64>> =
                lesson.distances.iter().map(|row| row.iter().map(|&d| logarithm(d)).collect()).collect();
            let n_pairs = (lesson.models.len() * lesson.models.len().saturating_sub(1)).max(1) as f64;
            let off_diagonal =
                logarithms.iter().enumerate().map(|(i, row)| row.iter().sum::<f64>() - row[i]).sum::<f64>();
            let mean = off_diagonal / n_pairs;
            for (i, row) in logarithms.iter().enumerate() {
                for (j, value) in row.iter().enumerate().filter(|(j, _)| *j != i) {
                    sums[lesson.models[i]][lesson.models[j]] += value - mean;
                    counts[lesson.models[i]][lesson.models[j]] += 1.0;
                }
            }
        }
        for (sums, counts) in sums.iter_mut().zip(&counts) {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum /= count.max(1.0);
            }
        }
        sums
    }

    /// Returns what a choice may rest on, for each candidate; all by their places in the lesson.
    fn figures(&self, lesson: &Lesson<'_>, fold: usize, candidates: &[usize], visible: &[usize]) -> Vec<Vec<f64>> {
        let bound = f64::from(self.profile.batch.distance_at(self.profile.pass_above));
        let of = |&candidate: &usize| {
            let typical = self.typicality[fold][lesson.replies[candidate]];
            let others = if visible.is_empty() { candidates } else { visible };
            let mut logarithms: Vec<f64> = others
                .iter()
                .filter(|&&other| other != candidate)
                .map(|&other| logarithm(lesson.distances[candidate][other]))
                .collect();
            logarithms.sort_by(f64::total_cmp);
            let nearest = logarithms.first().copied().unwrap_or(0.0);
            if visible.is_empty() {
                return vec![nearest, mean(&logarithms), typical];
            }
            // What a visible rival masks is masked, however near it is.
            let floor = if bound > 0.0 { bound.max(NEAREST).ln() } else { NEAREST.ln() };
            let second = logarithms.get(1).copied().unwrap_or(nearest);
            let is_masked = f64::from(u8::from(nearest <= floor));
            let of_four = mean(&logarithms[..logarithms.len().min(4)]);
            vec![nearest.max(floor), is_masked, second, of_four, mean(&logarithms), typical]
        };
        candidates.iter().map(of).collect()
    }

    fn is_masked(&self, lesson: &Lesson<'_>, candidate: usize, hidden: &[usize]) -> bool {
        let nearest = hidden.iter().map(|&i| lesson.distances[candidate][i]).min_by(f32::total_cmp).unwrap_or(1.0);
        self.profile.product(self.profile.batch.at(nearest), None) <= self.profile.pass_above
    }
}

impl Learned<'_> {
    /// Returns how good a choice each of our replies to a prompt is, higher being better, by what other prompts taught. `own` and
    /// `visible` are places in the record. What is not on record there counts as 0.
    #[must_use]
    pub fn scores(&self, prompt: &str, own: &[usize], visible: &[usize]) -> Vec<f64> {
        let Some(lesson) = self.by_prompt.get(prompt).map(|&index| &self.lessons.lessons[index]) else {
            return vec![0.0; own.len()];
        };
        let places = |of: &[usize]| -> Option<Vec<usize>> {
            of.iter().map(|reply| lesson.replies.iter().position(|other| other == reply)).collect()
        };
        let visible = if self.is_blind { &[] } else { visible };
        let (Some(own_places), Some(visible)) = (places(own), places(visible)) else { return vec![0.0; own.len()] };
        if visible.is_empty() != self.is_blind {
            return vec![0.0; own.len()];
        }
        let figures = self.lessons.figures(lesson, lesson.fold, &own_places, &visible);
        let labels = &self.lessons.labels[lesson.fold];
        let label = |place: usize| LABEL_WEIGHT * labels[lesson.models[place]];
        let ranking = &self.rankings[lesson.fold];
        own_places.iter().zip(&figures).map(|(&place, figures)| ranking.score(figures) + label(place)).collect()
    }
}

/// Returns the mean label of each model in all folds but one; the mean of all models for one that has none.
fn mean_labels(replies: &Replies, lessons: &[Lesson<'_>], n_models: usize, left_out: usize) -> Vec<f64> {
    let mut of_model = vec![Vec::new(); n_models];
    for lesson in lessons.iter().filter(|lesson| lesson.fold != left_out) {
        for (&reply, &model) in lesson.replies.iter().zip(&lesson.models) {
            of_model[model].extend(replies.all()[reply].label.map(f64::from));
        }
    }
    let overall = mean(&of_model.iter().flatten().copied().collect::<Vec<_>>());
    of_model.iter().map(|labels| if labels.is_empty() { overall } else { mean(labels) }).collect()
}

fn logarithm(distance: f32) -> f64 {
    f64::from(distance).max(NEAREST).ln()
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns a model's place among all, which are sorted; that of no model where it is not there.
fn place(models: &[&str], model: &str) -> usize {
    models.binary_search(&model).unwrap_or(models.len())
}

fn shuffle<T>(values: &mut [T], random: &mut ChaCha8Rng) {
    for i in (1..values.len()).rev() {
        values.swap(i, below(random, i + 1));
    }
}

#[cfg(test)]
mod tests;
