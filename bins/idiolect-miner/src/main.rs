//! The miner.
fn main() {}
