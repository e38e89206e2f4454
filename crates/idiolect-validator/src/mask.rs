//! Masks: factors of 0 or 1 that a validator multiplies a reply's reward by.
//!
//! The remaining one, diversity, is [`idiolect_uniqueness::gate`].

mod blacklist;
mod ngram_blacklist;
mod ngram_counts;
mod nsfw;
mod partial_ratio;
mod relevance;
mod task_validator;
mod word_piece;

pub use blacklist::Blacklist;
pub(crate) use ngram_blacklist::SavedNgrams;
pub use ngram_blacklist::{Match, NgramBlacklist, NgramRules};
pub use nsfw::{NsfwClassifier, WordList, nsfw_mask};
pub use partial_ratio::partial_ratio;
pub use relevance::{Relevance, RelevanceScore};
pub(crate) use relevance::{bert_scores, embed, mpnet_scores, odd_count, reaches};
pub(crate) use task_validator::has_foreign_label;
pub use task_validator::task_validator;
pub use word_piece::{TokenizerError, WordPiece};
