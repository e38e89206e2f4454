//! The pipeline with small doubles for model and encoder.

mod claims;
mod deadline;
mod double;
mod families;
mod judged;
mod learning;
mod mending;
mod paired;
mod passthrough;
mod records;
mod relevance;
mod reply;
mod reword;
mod telemetry;
