//! Query a miner from Rust
fn main() {}
