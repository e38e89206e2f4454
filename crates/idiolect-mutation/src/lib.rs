//! The prompt-mutation engine: small changes to a prompt that lead a model to another plan, reader or wording.
//!
//! Mutation only proposes: it draws [`Recipe`]s, each of a few [`Operator`]s out of a [`Library`], and the selector
//! chooses among what the model made of them. The recipe that changes nothing is always among them, and a request whose
//! answer will be checked against a model's goes through untouched ([`Mode::Passthrough`]).
//!
//! ```
//! use std::sync::Arc;
//!
//! use idiolect_backend::Message;
//! use idiolect_mutation::{Facts, Library, RecipeSampler, Task, guard};
//!
//! let library = Arc::new(Library::built_in());
//! let messages = [Message::user("Why is the sky blue?")];
//! let task = Task::detect(None, &messages);
//! let mode = library.route(&Facts { transport: "grpc", task: task.as_str(), ..Facts::default() });
//!
//! let sampler = RecipeSampler::new(library, 42);
//! let recipes = sampler.draw(3, 1, task, &mode);
//! assert_eq!(recipes[0].apply(&messages), messages);
//! assert!(recipes[1].apply(&messages).last().unwrap().content.starts_with("Why is the sky blue?"));
//! assert_eq!(recipes, sampler.draw(3, 1, task, &mode), "same seed, same request, same recipes");
//!
//! // What came back is checked for what validators punish.
//! assert!(guard::check(task, "Why is the sky blue?", "Air scatters blue light most.").is_empty());
//! ```
//!
//! What is drawn more often is learnt: see [`policy`]. New operators are bred from old ones: see [`evolve`].
//!
//! Main types: [`Library`] (read from TOML; [`LibraryFile`] reads it anew when it changes), [`Operator`], [`RecipeSampler`],
//! [`Recipe`], [`Route`], [`CollisionModel`], [`Task`], [`lint`], and the checks of [`guard`].

mod check;
pub mod collision;
mod compose;
pub mod evolve;
pub mod guard;
pub mod library;
pub mod lint;
pub mod operator;
pub mod paraphrase;
mod pattern;
pub mod policy;
mod reader;
pub mod recipe;
mod reload;
pub mod repair;
pub mod retry;
pub mod route;
pub mod sampling;
pub mod schema;
pub mod shape;
pub mod slot;
pub mod task;
mod template;
pub mod tokens;

pub use collision::{Amount, CollisionModel, Features};
pub use compose::ComposeError;
pub use guard::{Flag, FlagKind};
pub use library::{Library, LibraryError, Plan, Problem};
pub use operator::{Operator, Place};
pub use paraphrase::{ParaphraseConfig, ParaphraseError, Paraphraser};
pub use pattern::{BadPattern, NamePattern};
pub use recipe::{Applied, Recipe, RecipeSampler};
pub use reload::{LibraryFile, Polled};
pub use route::{Facts, Mode, Route};
pub use sampling::{SamplingOverrides, SamplingRanges, Setting};
pub use shape::{Form, Shape};
pub use task::Task;
pub use template::RenderError;
