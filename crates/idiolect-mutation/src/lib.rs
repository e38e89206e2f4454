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
//! let mode = library.route(&Facts { transport: "grpc", task: task.as_str(), dictated: false });
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
//! Main types: [`Library`] (read from TOML), [`Operator`], [`RecipeSampler`], [`Recipe`], [`Route`], [`Task`], and the
//! checks of [`guard`].

pub mod guard;
pub mod library;
pub mod operator;
pub mod recipe;
pub mod route;
pub mod task;

pub use guard::{Flag, FlagKind};
pub use library::{Library, LibraryError, Problem};
pub use operator::{Operator, Place, RenderError, SamplingOverrides};
pub use recipe::{Applied, Recipe, RecipeSampler};
pub use route::{Facts, Mode, Route};
pub use task::Task;
