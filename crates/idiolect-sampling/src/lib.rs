//! Drawing tokens from logits.
