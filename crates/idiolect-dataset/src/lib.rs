//! Reads what validators of text prompting published.
//!
//! Validators logged every step to Weights & Biases: a prompt, the replies of all miners that were asked, and what reward models, masks and penalties made of
//! each. There are three [generations](Generation) of it, in JSON lines, in the CSV of the validators' own export script, whose lists
//! are [Python literals](python_literal), and in Parquet. [`History`] reads all of them, row by row, to [`Step`]s and [`State`]s.

mod cell;
mod history;
mod literal;
mod step;

pub use cell::{Cell, Record};
pub use history::{Counts, Entry, History, HistoryError};
pub use literal::python_literal;
pub use step::{Call, Generation, Origin, State, Step};
