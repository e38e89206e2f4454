//! The Idiolect miner
