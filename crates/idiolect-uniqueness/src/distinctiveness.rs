//! How far a reply is from what everybody says, by what other prompts taught.
//!
//! No rival's reply to the same prompt is needed: weights, learnt from whole populations on record, are laid on a reply's embedding, on what
//! can be counted in its text (length, layout, turns of speech), and on how near it is to the prompt. They were fitted by ridge regression to
//! ln d less its mean over the prompt, where d is the distance to the nearest of all others; `idiolect-arena` does so. Times
//! a slope, the difference between two candidates is how much smaller the rate is at which rivals mask the one: see
//! [`chance`](crate::chance), whose ln Λ it is taken from.

mod style;

use std::collections::HashSet;
use std::io;

use serde::{Deserialize, Serialize};

use crate::vectors::{dot, normalised};

/// How many figures [`counted`] gives.
pub const N_COUNTED: usize = style::N + 3;

/// Weights that were learnt for one encoder.
///
/// # Examples
/// ```
/// use idiolect_uniqueness::distinctiveness::{Distinctiveness, N_COUNTED};
///
/// // Whatever points along the first axis is far from everybody.
/// let learnt = Distinctiveness::new("demo-encoder", vec![0.0; N_COUNTED], vec![1.0, 0.0], 0.7).unwrap();
/// let (far, near) = (learnt.of("a", &[1.0, 0.0], None).unwrap(), learnt.of("b", &[0.0, 1.0], None).unwrap());
/// assert!((far - near - 0.7).abs() < 1e-6);
/// let read: Distinctiveness = Distinctiveness::read(learnt.to_json().as_bytes()).unwrap();
/// assert_eq!(read, learnt);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distinctiveness {
    version: u32,
    encoder: String,
    slope: f64,
    #[serde(default)]
    n_prompts: usize,
    #[serde(default)]
    n_replies: usize,
    counted: Vec<f64>,
    embedding: Vec<f64>,
}

/// What a reply answers.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Its text.
    pub text: &'a str,
    /// Its place in the replies' space, in the same units as theirs.
    pub embedding: &'a [f32],
}

/// Why there are no weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistinctivenessError {
    /// The file cannot be read.
    #[error("cannot read what was learnt of other prompts")]
    Io(#[from] io::Error),
    /// It is no such file.
    #[error("not weights as `idiolect mutate learn` writes them")]
    Json(#[from] serde_json::Error),
    /// It was written by another version.
    #[error("version {found}, expected {}: learn again", Distinctiveness::VERSION)]
    Version {
        /// What the file says.
        found: u32,
    },
    /// There is another number of weights.
    #[error("{found} weights of what is counted in texts, expected {N_COUNTED}")]
    Counted {
        /// How many there are.
        found: usize,
    },
    /// There are no weights of embeddings.
    #[error("0 weights of embeddings, expected one for each value of {encoder}")]
    Empty {
        /// For which encoder.
        encoder: String,
    },
    /// One is no number.
    #[error("{name} is {value}, expected a finite number")]
    NotFinite {
        /// Which.
        name: &'static str,
        /// What it is.
        value: f64,
    },
    /// The slope says the opposite.
    #[error("slope is {0}, expected a number of at least 0")]
    Slope(f64),
}

impl Distinctiveness {
    /// Of the file's format.
    pub const VERSION: u32 = 1;

    /// Makes weights of an encoder's embeddings, one a value, and of what [`counted`] gives. The slope is how much ln Λ falls
    /// where ln d is said to be 1 higher.
    ///
    /// # Errors
    /// Another number of weights than expected, one that is not finite, and a slope below 0.
    pub fn new(
        encoder: impl Into<String>,
        counted: Vec<f64>,
        embedding: Vec<f64>,
        slope: f64,
    ) -> Result<Self, DistinctivenessError> {
        let made = Self {
            version: Self::VERSION,
            encoder: encoder.into(),
            slope,
            n_prompts: 0,
            n_replies: 0,
            counted,
            embedding,
        };
        made.check()?;
        Ok(made)
    }

    /// Says how much they were learnt from, for reports.
    #[must_use]
    pub fn learnt_from(self, n_prompts: usize, n_replies: usize) -> Self {
        Self { n_prompts, n_replies, ..self }
    }

    fn check(&self) -> Result<(), DistinctivenessError> {
        if self.version != Self::VERSION {
            return Err(DistinctivenessError::Version { found: self.version });
        }
        if self.counted.len() != N_COUNTED {
            return Err(DistinctivenessError::Counted { found: self.counted.len() });
        }
        if self.embedding.is_empty() {
            return Err(DistinctivenessError::Empty { encoder: self.encoder.clone() });
        }
        let all = [("a weight of what is counted", &self.counted), ("a weight of embeddings", &self.embedding)];
        for (name, weights) in all {
            if let Some(&value) = weights.iter().find(|weight| !weight.is_finite()) {
                return Err(DistinctivenessError::NotFinite { name, value });
            }
        }
        if self.slope.is_finite() && self.slope >= 0.0 { Ok(()) } else { Err(DistinctivenessError::Slope(self.slope)) }
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// Any [`DistinctivenessError`].
    pub fn read(file: impl io::Read) -> Result<Self, DistinctivenessError> {
        let text = io::read_to_string(file)?;
        let read: Self = serde_json::from_str(&text)?;
        read.check()?;
        Ok(read)
    }

    /// Returns them as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers, and names that are text: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the name of the encoder that they are for.
    #[must_use]
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// Returns how many values its embeddings have.
    #[must_use]
    pub const fn dimensions(&self) -> usize {
        self.embedding.len()
    }

    /// Returns how much ln Λ falls where ln d is said to be 1 higher.
    #[must_use]
    pub const fn slope(&self) -> f64 {
        self.slope
    }

    /// Returns how many prompts and replies they were learnt from; 0 where that is not known.
    #[must_use]
    pub const fn sources(&self) -> (usize, usize) {
        (self.n_prompts, self.n_replies)
    }

    /// Returns how far a reply is said to be from everybody's, times the slope. Only differences between candidates for one prompt
    /// mean anything. `None` for an embedding without a direction or of another size.
    #[must_use]
    pub fn of(&self, text: &str, embedding: &[f32], prompt: Option<Prompt<'_>>) -> Option<f64> {
        let unit = normalised(embedding).filter(|unit| unit.len() == self.embedding.len())?;
        let sum = |weights: &[f64], values: &mut dyn Iterator<Item = f64>| -> f64 {
            weights.iter().zip(values).map(|(weight, value)| weight * value).sum()
        };
        let of_text = sum(&self.counted, &mut counted(text, &unit, prompt).into_iter());
        let of_embedding = sum(&self.embedding, &mut unit.iter().map(|&value| f64::from(value)));
        Some(self.slope * (of_text + of_embedding))
    }
}

/// Returns what can be counted in a reply, and, where the prompt is known, how near it is to that and what share of its words, of all
/// and of the first fifteen, the prompt has.
#[must_use]
pub fn counted(text: &str, embedding: &[f32], prompt: Option<Prompt<'_>>) -> [f64; N_COUNTED] {
    let mut figures = [0.0; N_COUNTED];
    figures[..style::N].copy_from_slice(&style::style(text));
    if let Some(prompt) = prompt {
        let of_prompt: HashSet<String> = words(prompt.text).collect();
        let share = |words: &[String]| {
            let n_shared = words.iter().filter(|word| of_prompt.contains(*word)).count();
            n_shared as f64 / words.len().max(1) as f64
        };
        let words: Vec<String> = words(text).collect();
        let cosine = cosine(embedding, prompt.embedding);
        figures[style::N..].copy_from_slice(&[cosine, share(&words), share(&words[..words.len().min(15)])]);
    }
    figures
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(str::to_lowercase)
}

/// Returns the cosine of the angle between two embeddings; 0 where one has no direction, or another size.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    match (normalised(a), normalised(b)) {
        (Some(a), Some(b)) if a.len() == b.len() => f64::from(dot(&a, &b)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learnt() -> Distinctiveness {
        let mut counted = vec![0.0; N_COUNTED];
        (counted[0], counted[style::N], counted[style::N + 2]) = (0.5, -2.0, -1.0);
        Distinctiveness::new("e", counted, vec![1.0, -1.0], 0.5).unwrap().learnt_from(3, 12)
    }

    #[test]
    fn each_part_has_its_weight() {
        let learnt = learnt();
        let prompt = Prompt { text: "Why is the Sky blue?", embedding: &[0.6, 0.8] };
        let of = |prompt| learnt.of("the sky scatters", &[2.0, 0.0], prompt).unwrap();
        let text = 0.5 * 4.0_f64.ln();
        assert!((of(None) - 0.5 * (text + 1.0)).abs() < 1e-6);
        let beside = 0.5 * (text + 1.0 - 2.0 * 0.6 - 2.0 / 3.0);
        assert!((of(Some(prompt)) - beside).abs() < 1e-6, "{} {beside}", of(Some(prompt)));
        for unusable in [&[0.0, 0.0][..], &[f32::NAN, 1.0], &[1.0, 0.0, 0.0], &[]] {
            assert_eq!(learnt.of("a", unusable, None), None, "{unusable:?}");
        }
    }

    #[test]
    fn what_is_no_weights_is_refused_and_says_why() {
        let learnt = learnt();
        assert_eq!(Distinctiveness::read(learnt.to_json().as_bytes()).unwrap(), learnt);
        assert_eq!((learnt.encoder(), learnt.dimensions(), learnt.sources()), ("e", 2, (3, 12)));
        let with = |key: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(&learnt).unwrap();
            json[key] = value;
            Distinctiveness::read(json.to_string().as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(with("version", 2.into()), "version 2, expected 1: learn again");
        assert_eq!(with("counted", vec![1.0].into()), "1 weights of what is counted in texts, expected 19");
        assert!(with("embedding", serde_json::json!([])).starts_with("0 weights of embeddings, expected"));
        assert_eq!(with("slope", (-0.5).into()), "slope is -0.5, expected a number of at least 0");
        assert!(with("more", 1.into()).starts_with("not weights"));
        let infinite = Distinctiveness::new("e", vec![f64::INFINITY; N_COUNTED], vec![1.0], 1.0).unwrap_err();
        assert_eq!(infinite.to_string(), "a weight of what is counted is inf, expected a finite number");
    }

    proptest! {
        #[test]
        fn any_reply_has_a_finite_place(text in ".{0,80}", asked in ".{0,80}", e in proptest::collection::vec(proptest::num::f32::ANY, 2)) {
            let prompt = Prompt { text: &asked, embedding: &e };
            if let Some(found) = learnt().of(&text, &e, Some(prompt)) {
                prop_assert!(found.is_finite());
            }
        }
    }
}
