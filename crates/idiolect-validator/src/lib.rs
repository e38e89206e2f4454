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
//! let criteria = profile.penalties.expect("this version has penalties").criteria;
//! assert_eq!(criteria.penalty(task.kind, &task.criteria, "Light becomes sugar in leaves."), 0.0);
//! assert_eq!(criteria.penalty(task.kind, &task.criteria, "- Light becomes sugar, leaves."), 0.5);
//! ```
//!
//! Main types: [`Validator`] computes whole steps; [`Profile`] has its figures; [`Prompt`](task::Prompt) and [`StepTask`]
//! read prompts. What it is made of can be used alone: [`Stack`], [`Normaliser`], [`MovingAverage`]; the masks are in
//! [`mask`], the penalties in [`penalty`], the `dpo` reward in [`dpo`]. The diversity mask is [`idiolect_uniqueness::gate`].

mod classifier_model;
pub mod dpo;
pub mod mask;
mod moving_average;
mod normaliser;
pub mod penalty;
mod profile;
mod python;
mod report;
mod reward_model;
mod stack;
mod state;
mod step;
pub mod task;
mod validator;

pub use classifier_model::{ClassifierModel, RewardInput};
pub use moving_average::{MovingAverage, UnknownUid};
pub use normaliser::Normaliser;
pub use profile::{CriteriaPenalties, Mask, Penalties, Profile, ProfileError, RelevanceBounds, RewardText};
pub use report::{Cell, Factor, FactorKind, LogColumn, MissingFactor, StepReport};
pub use reward_model::{DpoModel, RewardModel};
pub use stack::{Column, Missing, Stack, StepError, StepRewards};
pub use state::StateError;
pub use step::{Reply, StepTask, TaskError};
pub use validator::{BertPart, Models, Validator};
