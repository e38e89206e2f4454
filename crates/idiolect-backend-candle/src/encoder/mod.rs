//! Sentence encoders.

mod bert;
mod minilm;
mod weights;

pub use minilm::MiniLm;
