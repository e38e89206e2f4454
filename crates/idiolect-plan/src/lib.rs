//! Would a miner earn its registration back?
//!
//! [`Inputs`] are what is known, each with where it comes from and its date; [`Plan::new`] computes what follows: income and cost a day, the day from which on all is paid for, the chance
//! of a loss, and a [`Verdict`]. Nothing here reads a clock, the environment or a network.
//!
//! ```
//! use idiolect_plan::{Assumptions, Date, Inputs, Plan, Range, Verdict};
//!
//! let today: Date = "2026-11-22".parse()?;
//! let mut inputs = Inputs::new();
//! for (key, value) in [
//!     ("burn_tao", 0.5),
//!     ("tao_usd", 400.0),
//!     ("alpha_tao", 0.02),
//!     ("emission_per_tempo", 148.0),
//!     ("gpu_usd_per_hour", 0.34),
//! ] {
//!     inputs.set_flag(key, value, today)?;
//! }
//! // What the arena found: 0.4 % of the weights, 0.2 to 0.7 %.
//! let share = Range { value: 0.004, low: 0.002, high: 0.007 };
//! let plan = Plan::new(&inputs, &Assumptions::with_share(share), today)?;
//! // 148 alpha every 72 minutes, of which 0.4 % at 8 dollars each.
//! assert!((plan.income_usd_per_day.value - 148.0 * 20.0 * 0.004 * 0.02 * 400.0).abs() < 1e-9);
//! assert_eq!(plan.verdict, Verdict::Do);
//! # Ok::<(), idiolect_plan::PlanError>(())
//! ```
//!
//! Main types: [`Inputs`], [`Assumptions`], [`Plan`], [`Formula`].

mod error;
mod future;
mod inputs;
mod plan;
mod render;

pub use error::PlanError;
pub use inputs::{Date, FIELDS, Field, Given, Inputs, Origin};
pub use plan::{Assumptions, Chances, Formula, Plan, Range, Verdict};
