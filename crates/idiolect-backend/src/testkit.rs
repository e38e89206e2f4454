//! A conformance suite for every backend and encoder, and a mock that fails on command. Feature `test-utils`.
//!
//! Put this into the tests of your backend; it panics with the broken rule and what was seen instead:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::sync::Arc;
//! use idiolect_backend::{testkit, Echo};
//!
//! testkit::conformance(|| Arc::new(Echo::new())).await;
//! # }
//! ```

mod conformance;
mod embedder;
mod faulty;

pub use conformance::{Conformance, conformance};
pub use embedder::embedder_conformance;
pub use faulty::{FaultyBackend, Step};
