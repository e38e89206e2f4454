//! What validators of text prompting compute about replies, so that a miner can compute it before it sends one.
//!
//! Two generations are covered, named by [`Profile`]: opentensor/validators 1.2 and opentensor/text-prompting 2.1.
//! Figures follow the recorded runs of the real modules within 1e-4 where there are recordings, and the formula where
//! there are none; each module says which.
//!
//! ```
//! use idiolect_validator::task::{Criterion, Prompt, TaskKind, Unit, text_prompting};
//!
//! let task = text_prompting::Task {
//!     kind: TaskKind::Augment,
//!     base_text: "Leaves make sugar out of light.".to_owned(),
//!     criteria: vec![Criterion::NoLists, Criterion::Length { target: 5, unit: Unit::Words }],
//! };
//! let prompt = task.compose();
//! assert_eq!(Prompt::parse(&prompt), Prompt::TextPrompting(task.clone()));
//! assert_eq!(Prompt::parse("What is the time?"), Prompt::Unknown);
//!
//! // Five words without a list: no penalty. A list costs half.
//! let profile = idiolect_validator::Profile::text_prompting_2_1();
//! assert_eq!(profile.criteria.penalty(&task, "Light becomes sugar in leaves."), 0.0);
//! assert_eq!(profile.criteria.penalty(&task, "- Light becomes sugar, leaves."), 0.5);
//! ```
//!
//! Main types: [`Prompt`](task::Prompt), [`Profile`], [`Stack`], [`Normaliser`], [`MovingAverage`]; the masks are in
//! [`mask`], the penalties in [`penalty`]. The diversity mask is [`idiolect_uniqueness::gate`].

pub mod dpo;
pub mod mask;
mod moving_average;
mod normaliser;
pub mod penalty;
mod profile;
mod reward_model;
mod stack;
pub mod task;

pub use moving_average::{MovingAverage, UnknownUid};
pub use normaliser::Normaliser;
pub use profile::{CriteriaPenalties, PenaltyLimits, Profile, ProfileError, RelevanceBounds};
pub use reward_model::{DpoModel, RewardModel};
pub use stack::{Column, Stack, StepError, StepRewards};
