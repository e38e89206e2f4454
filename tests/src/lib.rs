//! Whole-system scenarios
