//! What this machine can do at most: how fast it reads memory and how fast it multiplies.
//!
//! The figures are ceilings to hold measurements against. They are measured by loops that do nothing else, so real work
//! stays below them; on a busy machine they come out too low.
//!
//! ```
//! use std::time::Duration;
//! use idiolect_kernels::{Tier, limits};
//!
//! let one = limits::int8_macs_per_s(Tier::detect(), 1, Duration::from_millis(1));
//! assert!(one > 1e6);
//! ```

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of functions for instructions that need detection, and vector loads")
)]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Tier;
use crate::bytes::Bytes;

/// Times that a figure is measured; the best one counts.
const ROUNDS: u32 = 3;

/// Multiplications of a thread between two looks at the clock, about: some tens of microseconds.
const STEPS: usize = 20_000;

/// Bytes that a thread reads between two looks at the clock, at most.
const STRETCH: usize = 4 << 20;

/// Returns how many bytes a second `threads` threads read together, each from its own part of `bytes` bytes, over and over.
///
/// Give several times the last cache's size to measure memory, and less than it to measure the cache. Returns 0 where
/// there is not so much memory.
///
/// # Panics
/// When the system starts no thread.
#[must_use]
pub fn read_bytes_per_s(bytes: usize, threads: usize, time: Duration) -> f64 {
    let each = (bytes / threads.max(1)).next_multiple_of(64);
    let tier = Tier::detect();
    best(threads, time, |_| {
        let mut memory = Bytes::zeros(each);
        if let Some(memory) = &mut memory {
            // Pages that nobody wrote to are all the same one.
            memory.as_mut_slice().fill(1);
        }
        let mut at = 0;
        move || {
            let Some(memory) = &memory else { return 0 };
            let stretch = &memory.as_slice()[at..(at + STRETCH).min(memory.len())];
            at = if at + STRETCH < memory.len() { at + STRETCH } else { 0 };
            read(tier, stretch);
            stretch.len() as u64
        }
    })
}

/// Returns how many products of bytes a second `threads` threads multiply and add up, with the byte dot product of `tier`
/// or what it has instead. A tier that this processor cannot run counts as [`Tier::Portable`].
///
/// # Panics
/// When the system starts no thread.
#[must_use]
pub fn int8_macs_per_s(tier: Tier, threads: usize, time: Duration) -> f64 {
    let tier = runnable(tier);
    best(threads, time, |_| move || int8(tier, STEPS))
}

/// Returns how many products of `f32` a second `threads` threads multiply and add up, with the widest registers that `tier`
/// has. A tier that this processor cannot run counts as [`Tier::Portable`].
///
/// # Panics
/// When the system starts no thread.
#[must_use]
pub fn f32_macs_per_s(tier: Tier, threads: usize, time: Duration) -> f64 {
    let tier = runnable(tier);
    best(threads, time, |_| move || f32s(tier, STEPS))
}

fn runnable(tier: Tier) -> Tier {
    if tier.is_available() { tier } else { Tier::Portable }
}

/// Runs `make`'s closures on a thread each, all at the same time, and returns what they did a second, together.
fn best<W: FnMut() -> u64>(threads: usize, time: Duration, make: impl Fn(usize) -> W + Sync) -> f64 {
    let threads = threads.max(1);
    let mut best: f64 = 0.0;
    for _ in 0..ROUNDS {
        let barrier = Barrier::new(threads);
        let run = |i: usize| {
            let mut work = make(i);
            barrier.wait();
            // The first one warms up.
            work();
            let began = Instant::now();
            let mut done = 0;
            loop {
                done += work();
                let took = began.elapsed();
                if took >= time {
                    return done as f64 / took.as_secs_f64();
                }
            }
        };
        let sum = std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..threads).map(|i| scope.spawn(move || run(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
        });
        best = best.max(sum);
    }
    best
}

fn read(tier: Tier, memory: &[u8]) {
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni => {
            // SAFETY: the tier was detected.
            black_box(unsafe { x86::read_avx512(memory) });
        }
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 | Tier::AvxVnni => {
            // SAFETY: the tier was detected.
            black_box(unsafe { x86::read_avx2(memory) });
        }
        _ => {
            let mut sums = [0_u64; 16];
            for chunk in memory.as_chunks::<128>().0 {
                for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                    *sum ^= u64::from_le_bytes(*bytes);
                }
            }
            black_box(sums);
        }
    }
}

/// Multiplies for `steps` steps and returns how many products that were.
fn int8(tier: Tier, steps: usize) -> u64 {
    match tier {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `runnable` saw that the processor has the tier.
        Tier::Avx512Vnni => unsafe { x86::int8_avx512(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Tier::AvxVnni => unsafe { x86::int8_avx_vnni(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Tier::Avx2 => unsafe { x86::int8_avx2(steps) },
        _ => {
            const N: usize = 512;
            let (a, b) = (black_box([3_i8; N]), black_box([-5_i8; N]));
            let mut sums = [0_i32; 16];
            for _ in 0..steps / 16 {
                let (a, b) = (black_box(&a), black_box(&b));
                for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
                    for i in 0..16 {
                        sums[i] = sums[i].wrapping_add(i32::from(a[i]) * i32::from(b[i]));
                    }
                }
            }
            black_box(sums);
            (steps / 16 * N) as u64
        }
    }
}

/// Multiplies for `steps` steps and returns how many products that were.
fn f32s(tier: Tier, steps: usize) -> u64 {
    match tier {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `runnable` saw that the processor has the tier.
        Tier::Avx512Vnni => unsafe { x86::f32_avx512(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Tier::Avx2 | Tier::AvxVnni => unsafe { x86::f32_avx2(steps) },
        _ => {
            const N: usize = 32;
            let (factor, term) = (black_box(0.999_f32), black_box(0.001_f32));
            let mut sums = [1.0_f32; N];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = *sum * factor + term;
                }
            }
            black_box(sums);
            (steps * N) as u64
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
        _mm256_setzero_si256, _mm256_xor_si256, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
        _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::hint::black_box;

    /// Sums that grow side by side, so that none waits for the one before. With more, the compiler keeps them in memory.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(memory: &[u8]) -> [u8; 64] {
        let mut sums = [_mm512_setzero_si512(); 4];
        for chunk in memory.as_chunks::<256>().0 {
            for (sum, line) in sums.iter_mut().zip(chunk.as_chunks::<64>().0) {
                // SAFETY: a line has the 64 bytes that are loaded.
                *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
            }
        }
        let sum = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
        // SAFETY: both are 64 plain bytes.
        unsafe { std::mem::transmute(sum) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(memory: &[u8]) -> [u8; 32] {
        let mut sums = [_mm256_setzero_si256(); 4];
        for chunk in memory.as_chunks::<128>().0 {
            for (sum, part) in sums.iter_mut().zip(chunk.as_chunks::<32>().0) {
                // SAFETY: a part has the 32 bytes that are loaded.
                *sum = _mm256_xor_si256(*sum, unsafe { _mm256_loadu_si256(part.as_ptr().cast()) });
            }
        }
        let sum = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
        // SAFETY: both are 32 plain bytes.
        unsafe { std::mem::transmute(sum) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_avx512(steps: usize) -> u64 {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        (steps * SUMS * 64) as u64
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn int8_avx_vnni(steps: usize) -> u64 {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-5)));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        (steps * SUMS * 32) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2(steps: usize) -> u64 {
        let (b, ones) = (black_box(_mm256_set1_epi8(-5)), black_box(_mm256_set1_epi16(1)));
        let mut sums = [black_box(_mm256_set1_epi32(0x0301_0203)); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                // The sum is a factor, too: a product that is always the same would be computed once.
                let products = _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, b), ones);
                *sum = _mm256_add_epi32(*sum, products);
            }
        }
        black_box(sums);
        (steps * SUMS * 32) as u64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(steps: usize) -> u64 {
        let (factor, term) = (black_box(_mm512_set1_ps(0.999)), black_box(_mm512_set1_ps(0.001)));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (steps * SUMS * 16) as u64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(steps: usize) -> u64 {
        let (factor, term) = (black_box(_mm256_set1_ps(0.999)), black_box(_mm256_set1_ps(0.001)));
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (steps * SUMS * 8) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_has_figures_of_a_sane_size() {
        let time = Duration::from_micros(200);
        for tier in Tier::available() {
            for figure in [int8_macs_per_s(tier, 1, time), f32_macs_per_s(tier, 1, time)] {
                assert!((1e6..1e14).contains(&figure), "{tier}: {figure}");
            }
        }
        for threads in [0, 1, 2] {
            let figure = read_bytes_per_s(1 << 20, threads, time);
            assert!((1e6..1e14).contains(&figure), "{threads} threads: {figure}");
        }
    }

    #[test]
    fn a_tier_that_cannot_run_counts_as_plain() {
        #[cfg(target_arch = "x86_64")]
        assert_eq!(runnable(Tier::NeonDot), Tier::Portable);
        assert_eq!(runnable(Tier::Portable), Tier::Portable);
    }
}
