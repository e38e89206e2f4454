//! Penalties of opentensor/text-prompting 2.1: what takes a part off a reply's reward (`prompting/validators/penalty`).
//!
//! Equal to the recordings `penalties_v2.json` and `task_validator.json`.

mod content_match;
mod keyword_match;

pub use content_match::{OpeningRules, content_match};
pub use keyword_match::keyword_match;

/// Returns the factor that a raw penalty leaves: 1 - min(raw within 0 and 1, max). A raw penalty that is no number costs
/// the maximum.
#[must_use]
pub fn applied(raw: f64, max: f64) -> f64 {
    if raw.is_nan() { 1.0 - max } else { 1.0 - raw.clamp(0.0, 1.0).min(max) }
}
