//! One reply: detect, mutate, generate, score, select, record
