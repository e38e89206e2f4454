//! Random numbers, one sequence for each purpose, so that more of one changes nothing in the others.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// 64-bit FNV-1a: the same on every machine and in every version.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// Makes those of a purpose.
    pub(super) fn new(seed: u64, purpose: &[&str]) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&hash(purpose).to_le_bytes());
        Self(ChaCha8Rng::from_seed(bytes))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number below `n`, which must not be 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// Brings values into a random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            let other = self.below(i + 1);
            values.swap(i, other);
        }
    }
}

/// Draws of a bootstrap.
const N_DRAWS: usize = 2_000;

/// Returns means of resampled values, in ascending order; none of no values.
pub(super) fn bootstrap(values: &[f64], random: &mut Random) -> Vec<f64> {
    if values.is_empty() {
        return Vec::new();
    }
    let mean = |random: &mut Random| {
        (0..values.len()).map(|_| values[random.below(values.len())]).sum::<f64>() / values.len() as f64
    };
    let mut means: Vec<f64> = (0..N_DRAWS).map(|_| mean(random)).collect();
    means.sort_by(f64::total_cmp);
    means
}
