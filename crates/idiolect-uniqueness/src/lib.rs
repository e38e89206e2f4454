//! The uniqueness scorer: gate distances, reply history, selector
