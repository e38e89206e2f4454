//! The choice among candidates: the best one that the gate will let pass.

use std::cmp::Ordering;
use std::fmt;
use std::time::Instant;

use idiolect_backend::Embedding;
use serde::{Deserialize, Serialize};

use crate::chance::{Calibration, Chance, further};
use crate::gate::{GateMode, GateProfile, others, ranked};
use crate::lexical::vendi::vendi_score_of_embeddings;
use crate::population::{Panel, Population};
use crate::vectors::{IsOver, NO_LIMIT, OutOfTime, normalised};

/// How the choice is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectorConfig {
    /// The validators' arithmetic.
    pub profile: GateProfile,
    /// How much farther than the gate's own bound the nearest neighbour must be, in the validators' distance: we see only
    /// a few of the rivals. 0 to 1; the default of 0.0147 asks for a cosine below 0.92 where 0.9347 would pass.
    pub margin: f32,
    /// Factor from our encoder's distances to those of the validators' encoder, above 0; `None` takes
    /// [`distance_scale`] of the encoder's name.
    pub distance_scale: Option<f32>,
    /// How likely the gate is to mask, by what is seen of the rivals; `None` takes [`Calibration::of_encoder`].
    pub calibration: Option<Calibration>,
}

impl Default for SelectorConfig {
    fn default() -> Self {
        Self { profile: GateProfile::default(), margin: 0.0147, distance_scale: None, calibration: None }
    }
}

/// Returns the factor from an encoder's distances to those of all-mpnet-base-v2, which the validators use.
///
/// MiniLM sees the same order with distances larger by two thirds: scaled by 0.6 it agrees with the validators' mask
/// in 84 % of replies instead of 71 % (20 prompts with 40 models each). 1 for any other encoder.
#[must_use]
pub fn distance_scale(encoder: &str) -> f32 {
    if encoder.to_ascii_lowercase().contains("minilm") { 0.6 } else { 1.0 }
}

/// A candidate, as the selector sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its place in the encoder's space; `None` when there was no time for it.
    pub embedding: Option<&'a [f32]>,
    /// The estimated quality, in [0, 1]. What is not a number counts as 0.
    pub quality: f32,
    /// The model that wrote it. Where no rival is seen, candidates of another model stand in for them: where that model is so
    /// near, others are.
    pub source: &'a str,
    /// How far it is said to be from what everybody says, by [`Distinctiveness::of`](crate::Distinctiveness::of): ln Λ is lower by as much as
    /// this is above the candidates' mean. `None` where nothing was learnt.
    pub distinctiveness: Option<f64>,
}

/// Whom a candidate is nearest to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "of")]
#[non_exhaustive]
pub enum Neighbour {
    /// Another candidate of the same request, by index.
    Sibling(usize),
    /// A panel member, by label.
    Panel(String),
    /// A winning reply that the prompt quotes, by label.
    Quoted(String),
    /// An earlier reply of ours to the same prompt, by id.
    Earlier(String),
}

/// What is predicted for one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateScore {
    /// Whom it is nearest to, or who else comes at the profile's [`batch_rank`](GateProfile::batch_rank); `None` when there
    /// was nothing, or not so much, to compare with.
    pub nearest: Option<Neighbour>,
    /// Distance to that one in our encoder's space, in [0, 1]: 0 is a repeat. `None` when there was nothing to compare
    /// with; 0 for an embedding without a direction.
    pub distance: Option<f32>,
    /// Distance to the second-nearest of all our earlier replies (or of the profile's
    /// [`history_rank`](GateProfile::history_rank)), in [0, 1]; `None` with fewer.
    pub history_distance: Option<f32>,
    /// Predicted batch reward, in [0, 1]; 1 when there was nothing to compare with, which is ignorance, not proof.
    pub batch: f32,
    /// Predicted historic reward, in [0, 1].
    pub historic: Option<f32>,
    /// Predicted factor on the reward before any mask: batch times historic, in [0, 1]. 1 is unlike anything seen.
    pub predicted: f32,
    /// How likely the gate is to mask it once all rivals are there; `None` without a usable embedding, where there was no time to
    /// find out, for an encoder without a calibration, and under a profile where another than the nearest counts. Rivals that are
    /// seen are the panel, or else candidates of other models; where there are none, it rests on how far the model's candidates are from
    /// its [plain answers](Population::with_plain). Of several candidates one that is further from the others is less likely to be masked.
    #[serde(default)]
    pub masked: Option<Chance>,
    /// How much lower ln Λ was taken to be for what other prompts taught of replies like it; 0 is as the mean of the
    /// candidates. `None` where nothing was learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinctiveness: Option<f32>,
    /// Whether it clears the gate with the margin. False without a usable embedding, and where there was no time to find
    /// out.
    pub clears: bool,
    /// The quality that was given, in [0, 1].
    pub quality: f32,
    /// How many texts the prediction rests on.
    pub n_compared: usize,
}

/// Why a candidate was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// There was only one.
    OnlyCandidate,
    /// Of those that clear the gate it has the best product of quality and chance not to be masked.
    BestThatClears,
    /// None clears the gate: it has the best product of quality and predicted reward.
    NoneClears,
    /// The profile has no mask: it has the best product of quality and predicted reward.
    HighestExpected,
    /// Nothing was embedded: it has the best quality.
    QualityOnly,
}

impl Reason {
    /// Returns the name used in provenance and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::BestThatClears => "best_that_clears",
            Self::NoneClears => "none_clears",
            Self::HighestExpected => "highest_expected",
            Self::QualityOnly => "quality_only",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Index of the chosen candidate.
    pub chosen: usize,
    /// All indices, best first; `ranking[0]` is `chosen`.
    pub ranking: Vec<usize>,
    /// One entry a candidate, in order.
    pub scores: Vec<CandidateScore>,
    /// Why.
    pub reason: Reason,
    /// Candidates that there was no time to compare with panel and history: what is predicted for them rests on the other
    /// candidates alone.
    #[serde(default)]
    pub n_unsearched: usize,
    /// Vendi score of the candidates' embeddings: the effective number of different ones, from 1 on. `None` where none can be
    /// used.
    #[serde(default)]
    pub vendi: Option<f64>,
}

/// Chooses the candidate with the best quality among those that the gate will let pass.
///
/// - Distances are taken to the other candidates, the panel, and our earlier replies to the same prompt; the historic
///   reward to all our earlier replies. With an empty history it has no part. Other candidates stand for
///   rivals where none is seen: they are not sent themselves.
/// - A candidate that clears the gate beats one that does not, whatever its quality, unless that is 0. Above the gate
///   quality times the chance not to be masked counts (quality alone for an encoder without a
///   [`Calibration`]): more distance earns nothing but safety from the rivals that are not
///   seen. A profile without a mask takes the best product of quality and predicted reward.
/// - A candidate whose embedding has no direction (zero length, a value that is not finite, another size than the
///   rest) counts as a repeat: distance 0.
/// - Of equal candidates the first wins. The choice depends on nothing but the arguments.
///
/// The cost is one search of the history for each candidate; [`select_until`](Self::select_until) bounds it.
///
/// # Examples
/// ```
/// use idiolect_uniqueness::{Candidate, Population, Reason, Selector, SelectorConfig};
///
/// let selector = Selector::new(SelectorConfig::default());
/// let candidates = [
///     Candidate { embedding: Some(&[1.0, 0.0, 0.0]), quality: 0.9, source: "m", distinctiveness: None },
///     Candidate { embedding: Some(&[1.0, 0.01, 0.0]), quality: 0.8, source: "m", distinctiveness: None },
///     Candidate { embedding: Some(&[0.0, 1.0, 0.0]), quality: 0.7, source: "m", distinctiveness: None },
/// ];
/// let selection = selector.select(&candidates, &Population::new("test")).unwrap();
/// assert_eq!((selection.chosen, selection.reason), (2, Reason::BestThatClears));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Selector {
    config: SelectorConfig,
}

impl Selector {
    /// Makes a selector. A margin outside 0 to 1 and a scale that is not above 0 are taken as the nearest that is.
    #[must_use]
    pub fn new(mut config: SelectorConfig) -> Self {
        config.margin = if config.margin.is_finite() { config.margin.clamp(0.0, 1.0) } else { 0.0 };
        config.distance_scale = config.distance_scale.map(|s| if s.is_finite() { s.max(1e-6) } else { 1.0 });
        Self { config }
    }

    /// Returns how the choice is made.
    #[must_use]
    pub const fn config(&self) -> &SelectorConfig {
        &self.config
    }

    /// Chooses; `None` only when there are no candidates.
    #[must_use]
    pub fn select(&self, candidates: &[Candidate<'_>], population: &Population<'_>) -> Option<Selection> {
        self.select_with(candidates, population, NO_LIMIT)
    }

    /// As [`select`](Self::select), with what is known by `until`: candidates that were not compared with panel and history
    /// by then count as not clearing the gate, so one that is known to clear it beats them. Among themselves the
    /// best product of quality and what the other candidates let expect wins. The other candidates are always compared with, which
    /// takes a millisecond at most.
    #[must_use]
    pub fn select_until(
        &self,
        candidates: &[Candidate<'_>],
        population: &Population<'_>,
        until: Instant,
    ) -> Option<Selection> {
        self.select_with(candidates, population, &|| Instant::now() >= until)
    }

    fn select_with(
        &self,
        candidates: &[Candidate<'_>],
        population: &Population<'_>,
        is_over: IsOver<'_>,
    ) -> Option<Selection> {
        let units: Vec<Option<Vec<f32>>> = candidates.iter().map(|c| c.embedding.and_then(normalised)).collect();
        let mut n_unsearched = 0;
        let mut scores: Vec<CandidateScore> = Vec::with_capacity(candidates.len());
        let further = self.further(&units, population);
        let distinctive = distinctive(candidates);
        for (i, (&further, &distinctive)) in further.iter().zip(&distinctive).enumerate() {
            let beside = Beside { further, distinctive };
            let (score, is_searched) = self.score(i, beside, candidates, &units, population, is_over);
            scores.push(score);
            n_unsearched += usize::from(!is_searched);
        }
        let mut ranking: Vec<usize> = (0..candidates.len()).collect();
        ranking.sort_by(|&a, &b| self.compare(&scores[b], &scores[a]).then(a.cmp(&b)));
        let chosen = *ranking.first()?;
        let reason = if candidates.len() == 1 {
            Reason::OnlyCandidate
        } else if candidates.iter().all(|c| c.embedding.is_none()) {
            Reason::QualityOnly
        } else if self.config.profile.mode == GateMode::Product {
            Reason::HighestExpected
        } else if scores[chosen].clears {
            Reason::BestThatClears
        } else {
            Reason::NoneClears
        };
        let usable: Vec<Embedding> = units.into_iter().flatten().collect();
        let vendi = vendi_score_of_embeddings(&usable);
        Some(Selection { chosen, ranking, scores, reason, n_unsearched, vendi })
    }

    /// Also says whether all that is known was compared with.
    fn score(
        &self,
        index: usize,
        beside: Beside,
        candidates: &[Candidate<'_>],
        units: &[Option<Vec<f32>>],
        population: &Population<'_>,
        is_over: IsOver<'_>,
    ) -> (CandidateScore, bool) {
        let candidate = &candidates[index];
        let quality = if candidate.quality.is_nan() { 0.0 } else { candidate.quality.clamp(0.0, 1.0) };
        let Some(unit) = &units[index] else {
            return (Self::score_unusable(candidate, quality), true);
        };
        let profile = &self.config.profile;
        let found = search(unit, population, profile, is_over);
        let is_searched = found.is_ok();
        let Found { nearest, seen_rival, history_distance, n_compared } = found.unwrap_or_default();
        let scale = self.scale(population);
        let historic = history_distance.map(|d| profile.historic.at(d * scale));
        let known = is_searched.then(|| Known {
            rivals: Self::rivals(index, candidates, units, population, seen_rival),
            to_plain: Self::to_plain(candidates[index].source, candidates, units, population),
            beside,
            historic,
        });
        // Where rivals are seen, what nobody sends says nothing of them.
        let sees_rivals = population.panel.is_some_and(|panel| !panel.is_empty());
        let siblings = others(index, units).filter(|_| !sees_rivals);
        let siblings = siblings.map(|(j, distance)| (Neighbour::Sibling(j), distance));
        let nearest = ranked(siblings.chain(nearest), profile.batch_rank);

        let reward = |less: f32| nearest.as_ref().map_or(1.0, |&(_, d)| profile.batch.at((d * scale - less).max(0.0)));
        let score = CandidateScore {
            distance: nearest.as_ref().map(|&(_, d)| d),
            n_compared: if sees_rivals { 0 } else { units.iter().flatten().count() - 1 } + n_compared,
            nearest: nearest.as_ref().map(|(whom, _)| whom.clone()),
            history_distance,
            batch: reward(0.0),
            historic,
            predicted: profile.product(reward(0.0), historic),
            masked: known.and_then(|known| self.chance(&known, population)),
            distinctiveness: beside.distinctive.map(|distinctive| distinctive as f32),
            clears: is_searched && profile.product(reward(self.config.margin), historic) > profile.pass_above,
            quality,
        };
        (score, is_searched)
    }

    /// Returns the distance to the nearest that stands for a rival, and how many do.
    fn rivals(
        index: usize,
        candidates: &[Candidate<'_>],
        units: &[Option<Vec<f32>>],
        population: &Population<'_>,
        seen_rival: Option<f32>,
    ) -> (Option<f32>, usize) {
        let n_panel = population.panel.map_or(0, Panel::len);
        let is_other_model = |j: usize| candidates[j].source != candidates[index].source;
        let of_others = others(index, units).filter(|&(j, _)| n_panel == 0 && is_other_model(j));
        let of_others: Vec<f32> = of_others.map(|(_, distance)| distance).collect();
        let n_seen = of_others.len() + n_panel;
        (of_others.into_iter().chain(seen_rival).min_by(f32::total_cmp), n_seen)
    }

    /// Returns how much further each candidate is from the others than those are; 0 for one without a usable embedding.
    fn further(&self, units: &[Option<Vec<f32>>], population: &Population<'_>) -> Vec<f64> {
        let scale = self.scale(population);
        let usable = || (0..units.len()).filter(|&i| units[i].is_some());
        let row = |i: usize| others(i, units).map(|(_, distance)| distance * scale).collect();
        let mut found = further(&usable().map(row).collect::<Vec<_>>()).into_iter();
        units.iter().map(|unit| unit.as_ref().and_then(|_| found.next()).unwrap_or(0.0)).collect()
    }

    /// Returns the mean distance between the plain answers of a model and its others, as the exponential of the mean logarithm.
    fn to_plain(
        source: &str,
        candidates: &[Candidate<'_>],
        units: &[Option<Vec<f32>>],
        population: &Population<'_>,
    ) -> Option<f32> {
        let is_plain = |i: &usize| population.plain.contains(i);
        let of_model = |i: &usize| candidates[*i].source == source && units[*i].is_some();
        let (plain, varied): (Vec<usize>, Vec<usize>) = (0..candidates.len()).filter(of_model).partition(is_plain);
        let mut logarithms = Vec::with_capacity(varied.len());
        for i in varied {
            // Several plain answers are one voice: their mean counts.
            let distances: Vec<f32> = others(i, units).filter(|(j, _)| plain.contains(j)).map(|(_, d)| d).collect();
            if !distances.is_empty() {
                let mean = distances.iter().sum::<f32>() / distances.len() as f32;
                logarithms.push(mean.max(f32::MIN_POSITIVE).ln());
            }
        }
        let n = logarithms.len() as f32;
        (!logarithms.is_empty()).then(|| (logarithms.iter().sum::<f32>() / n).exp())
    }

    fn scale(&self, population: &Population<'_>) -> f32 {
        self.config.distance_scale.unwrap_or_else(|| distance_scale(population.encoder))
    }

    fn chance(&self, known: &Known, population: &Population<'_>) -> Option<Chance> {
        let found;
        let calibration = match &self.config.calibration {
            Some(calibration) => calibration,
            None => {
                found = Calibration::of_encoder(population.encoder)?;
                &found
            }
        };
        let profile = &self.config.profile;
        if profile.batch_rank != 1 {
            // The model is one of the nearest rival.
            return None;
        }
        // What the batch reward has to be above, for the product to pass.
        let bound = profile.batch.distance_at(profile.pass_above / known.historic.unwrap_or(1.0));
        let (distance, n_seen) = known.rivals;
        let n_unseen = population.n_rivals.saturating_sub(n_seen);
        let scale = self.scale(population);
        let to_plain = known.to_plain.filter(|_| n_seen == 0);
        let beside_plain = to_plain.and_then(|d| calibration.masked_beside_plain(d * scale, bound, n_unseen));
        let chance =
            beside_plain.unwrap_or_else(|| calibration.masked(distance.map(|d| d * scale), bound, n_seen, n_unseen));
        let chance = calibration.beside_siblings(chance, known.beside.further, n_seen);
        Some(chance.less(known.beside.distinctive.unwrap_or(0.0)))
    }

    fn score_unusable(candidate: &Candidate<'_>, quality: f32) -> CandidateScore {
        CandidateScore {
            nearest: None,
            // An embedding that points nowhere counts as a repeat; one that was never made says nothing.
            distance: candidate.embedding.map(|_| 0.0),
            history_distance: None,
            batch: 0.0,
            historic: None,
            predicted: 0.0,
            masked: None,
            distinctiveness: None,
            clears: false,
            quality,
            n_compared: 0,
        }
    }

    fn compare(&self, a: &CandidateScore, b: &CandidateScore) -> Ordering {
        let key = |score: &CandidateScore| {
            let expected = score.quality * score.predicted;
            match self.config.profile.mode {
                GateMode::Mask if score.clears && score.quality > 0.0 => {
                    (1, score.quality * (1.0 - score.masked.map_or(0.0, |masked| masked.p)))
                }
                GateMode::Mask | GateMode::Product => (0, expected),
            }
        };
        let (a_tier, a_value) = key(a);
        let (b_tier, b_value) = key(b);
        // Where every expectation is 0, quality still tells a repeat from nonsense.
        let by_value = a_tier.cmp(&b_tier).then(a_value.total_cmp(&b_value));
        // Beyond what the chance to be masked was fitted to, more distance still does no harm.
        by_value
            .then(a.quality.total_cmp(&b.quality))
            .then(a.distance.unwrap_or(0.0).total_cmp(&b.distance.unwrap_or(0.0)))
    }
}

/// What the chance to be masked rests on.
struct Known {
    /// The distance to the nearest that stands for a rival, and how many do.
    rivals: (Option<f32>, usize),
    to_plain: Option<f32>,
    beside: Beside,
    historic: Option<f32>,
}

/// How a candidate stands among all of them.
#[derive(Clone, Copy)]
struct Beside {
    /// By how much it is further from our other candidates than those are, in the mean logarithm of distances.
    further: f64,
    /// How much lower ln Λ is taken to be for what other prompts taught.
    distinctive: Option<f64>,
}

/// A reply of which more is said than this is like none that anything was learnt from.
const MOST_DISTINCTIVE: f64 = 3.0;

/// Returns how much more distinctive each candidate is said to be than the mean of those of which something is known.
fn distinctive(candidates: &[Candidate<'_>]) -> Vec<Option<f64>> {
    let finite = |candidate: &Candidate<'_>| candidate.distinctiveness.filter(|value| value.is_finite());
    let known: Vec<f64> = candidates.iter().filter_map(finite).collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let more = |value: f64| (value - mean).clamp(-MOST_DISTINCTIVE, MOST_DISTINCTIVE);
    candidates.iter().map(|candidate| finite(candidate).map(more)).collect()
}

/// What the search of panel and history gave for one candidate.
#[derive(Default)]
struct Found {
    /// The nearest of the panel, and of our earlier replies to the same prompt: as many of each as the rank may need.
    nearest: Vec<(Neighbour, f32)>,
    /// Distance to the nearest of the panel that answered the same prompt.
    seen_rival: Option<f32>,
    history_distance: Option<f32>,
    n_compared: usize,
}

fn search(
    unit: &[f32],
    population: &Population<'_>,
    profile: &GateProfile,
    is_over: IsOver<'_>,
) -> Result<Found, OutOfTime> {
    let &GateProfile { batch_rank, history_rank, .. } = profile;
    let mut found = Found::default();
    if let Some(panel) = population.panel {
        found
            .nearest
            .extend(panel.search(unit, batch_rank, is_over)?.map(|(label, d)| (Neighbour::Panel(label.to_owned()), d)));
        found.seen_rival = found.nearest.first().map(|&(_, distance)| distance);
        found.n_compared += panel.len();
    }
    let panels = [population.elsewhere, population.quoted].into_iter();
    for (panel, neighbour) in panels.zip([Neighbour::Panel, Neighbour::Quoted]) {
        let Some(panel) = panel else { continue };
        let nearest = panel.search(unit, batch_rank, is_over)?;
        found.nearest.extend(nearest.map(|(label, d)| (neighbour(label.to_owned()), d)));
        found.n_compared += panel.len();
    }
    if let Some(history) = population.history {
        let earlier = history.search(unit, batch_rank, Some(population.prompt_hash), is_over)?;
        found.nearest.extend(earlier.into_iter().map(|n| (Neighbour::Earlier(n.reply_id), n.distance)));
        let ranked = history.search(unit, history_rank, None, is_over)?;
        found.history_distance = ranked.get(history_rank.wrapping_sub(1)).map(|ranked| ranked.distance);
        found.n_compared += history.len();
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
