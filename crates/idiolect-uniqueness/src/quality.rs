//! An estimate of how good a candidate is: what a reward model makes of it, or else what generation gives for free, less
//! what is taken off for its form.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// How good a reward model finds a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// The model's own figure, of `dpo` the mean log-probability a token; `None` where it is no finite number.
    pub raw: Option<f32>,
    /// Where that stands among all that the model was asked for, in [0, 1].
    pub normalised: f32,
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The text.
    pub text: &'a str,
    /// Mean log-probability a token under the model that wrote it.
    pub mean_logprob: Option<f32>,
    /// The model that wrote it: log-probabilities of different models are not compared.
    pub model: &'a str,
    /// Which wording of the prompt it answers: log-probabilities under different ones are not compared either, else the
    /// plain prompt, whose answers are the likeliest as a rule, would win nearly always.
    pub prompt: usize,
    /// Whether it came to its own end, rather than being cut.
    pub complete: bool,
    /// Share of the reward that format rules take away, in [0, 1].
    pub penalty: f32,
    /// What a reward model makes of it, in place of `mean_logprob`: comparable whoever wrote it, and to which wording.
    pub reward: Option<Reward>,
}

/// The estimate and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The estimate, in [0, 1]: (0.5 + 0.5 · likelihood) · length · (1 - repetition) · (1 - penalty), less 30 % when cut.
    pub score: f32,
    /// The reward model's normalised figure, in [0, 1]. Without one, where its mean log-probability stands among its siblings
    /// of the same model and prompt, in (0, 1); 0.5 when there is nothing to compare with. What counts as far is measured over
    /// all prompts of the model together.
    pub likelihood: f32,
    /// 1 for a sane length, less for a text far shorter than its siblings, 0 for an empty one.
    pub length: f32,
    /// Share of its four-word sequences that it had already said, in [0, 1], less one tenth that is forgiven.
    pub repetition: f32,
    /// The format penalty that was given, in [0, 1].
    pub penalty: f32,
    /// What the reward model said, where one was asked.
    #[serde(default)]
    pub reward: Option<Reward>,
}

/// Estimates the quality of candidates for one prompt. The result has one entry for each, in order; it depends on
/// nothing but the arguments.
///
/// # Examples
/// ```
/// use idiolect_uniqueness::quality::{Draft, estimate};
///
/// let draft = |text| Draft { text, mean_logprob: None, model: "m", prompt: 0, complete: true, penalty: 0.0, reward: None };
/// let good = "Leaves turn light into sugar, and give off oxygen while they do.";
/// let loops = "Leaves turn light into leaves turn light into leaves turn light into leaves turn light into";
/// let estimates = estimate(&[draft(good), draft(loops)]);
/// assert!(estimates[0].score > estimates[1].score);
/// ```
#[must_use]
pub fn estimate(drafts: &[Draft<'_>]) -> Vec<Quality> {
    let mut n_words: Vec<usize> = drafts.iter().map(|d| d.text.split_whitespace().count()).filter(|&n| n > 0).collect();
    n_words.sort_unstable();
    let median = n_words.get(n_words.len() / 2).copied().unwrap_or(0);
    drafts.iter().map(|draft| estimate_one(draft, likelihood(draft, drafts), median)).collect()
}

fn estimate_one(draft: &Draft<'_>, likelihood: f32, median_words: usize) -> Quality {
    let words: Vec<&str> = draft.text.split_whitespace().collect();
    let length = length_factor(words.len(), median_words);
    let repetition = repetition(&words, draft.text);
    let penalty = if draft.penalty.is_finite() { draft.penalty.clamp(0.0, 1.0) } else { 1.0 };
    let cut = if draft.complete { 1.0 } else { 0.7 };
    let score = (0.5 + 0.5 * likelihood) * length * (1.0 - repetition) * (1.0 - penalty) * cut;
    Quality { score: score.clamp(0.0, 1.0), likelihood, length, repetition, penalty, reward: draft.reward }
}

/// Returns the logistic of 1.7 z, which is the normal distribution's curve to within 0.01.
fn likelihood(draft: &Draft<'_>, drafts: &[Draft<'_>]) -> f32 {
    if let Some(reward) = draft.reward {
        return if reward.normalised.is_nan() { 0.0 } else { reward.normalised.clamp(0.0, 1.0) };
    }
    let Some(own) = above_siblings(draft, drafts) else { return 0.5 };
    let same_model = drafts.iter().filter(|d| d.model == draft.model);
    let deviations: Vec<f32> = same_model.filter_map(|d| above_siblings(d, drafts)).collect();
    let sd = (deviations.iter().map(|v| v.powi(2)).sum::<f32>() / deviations.len() as f32).sqrt();
    if sd < 1e-6 {
        return 0.5;
    }
    let z = (own / sd).clamp(-3.0, 3.0);
    1.0 / (1.0 + (-1.7 * z).exp())
}

/// Returns how far a draft's mean log-probability is above the mean of those of its model and prompt, where there are two.
fn above_siblings(draft: &Draft<'_>, drafts: &[Draft<'_>]) -> Option<f32> {
    let finite = |d: &Draft<'_>| d.mean_logprob.filter(|v| v.is_finite());
    let own = finite(draft)?;
    let alike = drafts.iter().filter(|d| d.model == draft.model && d.prompt == draft.prompt);
    let values: Vec<f32> = alike.filter_map(finite).collect();
    (values.len() > 1).then(|| own - values.iter().sum::<f32>() / values.len() as f32)
}

fn length_factor(n_words: usize, median: usize) -> f32 {
    match n_words {
        0 => 0.0,
        // Short answers are right where all the siblings are short.
        n if n * 3 >= median => 1.0,
        n => 0.4 + 0.6 * (n * 3) as f32 / median as f32,
    }
}

fn repetition(words: &[&str], text: &str) -> f32 {
    const N: usize = 4;
    let share = if words.len() >= 2 * N {
        repeated_share(words.windows(N))
    } else {
        // One endless word, or a script without spaces.
        let characters: Vec<char> = text.chars().collect();
        if characters.len() < 64 { 0.0 } else { repeated_share(characters.windows(2 * N)) }
    };
    ((share - 0.1) / 0.9).clamp(0.0, 1.0)
}

fn repeated_share<'a, T: Eq + std::hash::Hash + 'a>(sequences: impl ExactSizeIterator<Item = &'a [T]>) -> f32 {
    let n = sequences.len();
    let different = sequences.collect::<HashSet<_>>().len();
    if n == 0 { 0.0 } else { (n - different) as f32 / n as f32 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(text: &str) -> Draft<'_> {
        Draft { text, mean_logprob: None, model: "m", prompt: 0, complete: true, penalty: 0.0, reward: None }
    }

    const LONG: &str = "Light is absorbed by chlorophyll, water is split, and sugar is built out of carbon dioxide.";

    #[test]
    fn likelier_is_better_among_siblings_of_one_model_only() {
        let with = |logprob, model| Draft { mean_logprob: Some(logprob), model, ..draft(LONG) };
        let scores = estimate(&[with(-1.0, "m"), with(-2.0, "m"), with(-9.0, "other"), draft(LONG)]);
        assert!(scores[0].likelihood > 0.8 && scores[1].likelihood < 0.2);
        assert_eq!(scores[2].likelihood, 0.5);
        assert_eq!(scores[3].likelihood, 0.5);
    }

    #[test]
    fn a_likelier_prompt_is_no_merit_of_its_answers() {
        let with = |logprob, prompt| Draft { mean_logprob: Some(logprob), prompt, ..draft(LONG) };
        let plain = [with(-0.5, 0), with(-0.6, 0)];
        let varied = [with(-2.0, 1), with(-2.4, 1), with(-1.0, 2)];
        let scores = estimate(&[plain.as_slice(), &varied].concat());
        assert!(scores[2].likelihood > scores[0].likelihood && scores[0].likelihood > scores[1].likelihood);
        assert!(scores[3].likelihood < scores[1].likelihood);
        assert_eq!(scores[4].likelihood, 0.5);
    }

    #[test]
    fn a_reward_takes_the_place_of_the_writers_own_figures() {
        let with = |logprob, normalised| Draft {
            mean_logprob: Some(logprob),
            reward: Some(Reward { raw: Some(-2.0), normalised }),
            ..draft(LONG)
        };
        let scores = estimate(&[with(-9.0, 0.75), with(-0.1, 0.25), with(-0.1, f32::NAN), draft(LONG)]);
        assert_eq!(scores.iter().map(|q| q.likelihood).collect::<Vec<_>>(), [0.75, 0.25, 0.0, 0.5]);
        assert_eq!(scores[0].reward, Some(Reward { raw: Some(-2.0), normalised: 0.75 }));
        assert_eq!(scores[0].score, 0.875);
    }

    #[test]
    fn empty_cut_short_and_looping_texts_lose() {
        let looping = "go on and on and ".repeat(20);
        let run = "ha".repeat(200);
        let cut = Draft { complete: false, ..draft(LONG) };
        let texts =
            [draft(LONG), draft(LONG), draft(LONG), cut, draft("No."), draft(&looping), draft(&run), draft(" \n")];
        let q = estimate(&texts);
        for worse in &q[3..] {
            assert!(worse.score < q[0].score, "{worse:?}");
        }
        assert_eq!(q[7].score, 0.0);
        assert!(q[5].score < 0.2 && q[6].score < 0.2, "{:?} {:?}", q[5], q[6]);
        assert_eq!(estimate(&[draft("Yes"), draft("No")])[0].length, 1.0);
    }

    #[test]
    fn figures_out_of_range_are_defined() {
        let odd = |logprob, penalty| Draft { mean_logprob: Some(logprob), penalty, ..draft(LONG) };
        let q = estimate(&[odd(f32::NAN, f32::NAN), odd(f32::NEG_INFINITY, 7.0), odd(-1.0, -7.0)]);
        assert_eq!((q[0].score, q[1].score), (0.0, 0.0));
        assert_eq!(q[2].likelihood, 0.5);
        assert!(estimate(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn scores_stay_in_range(
            texts in proptest::collection::vec((".{0,80}", proptest::option::of(proptest::num::f32::ANY),
                any::<bool>(), proptest::num::f32::ANY), 0..6)
        ) {
            let drafts: Vec<Draft<'_>> = texts
                .iter()
                .map(|(text, mean_logprob, complete, penalty)| Draft {
                    text, mean_logprob: *mean_logprob, model: "m", prompt: text.len() % 2, complete: *complete, penalty: *penalty,
                    reward: mean_logprob.filter(|_| text.len() % 3 == 0).map(|raw| Reward { raw: Some(raw), normalised: raw }),
                })
                .collect();
            for q in estimate(&drafts) {
                for value in [q.score, q.likelihood, q.length, q.repetition, q.penalty] {
                    prop_assert!((0.0..=1.0).contains(&value), "{q:?}");
                }
            }
        }
    }
}
