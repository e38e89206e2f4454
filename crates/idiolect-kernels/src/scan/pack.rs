//! Comparing sixteen numbers with one, and packing those that are wanted side by side.

#![expect(unsafe_code, reason = "SIMD: stores through pointers, and instructions that need detection")]

use super::LANES;

/// What a tier does better than plain code.
///
/// # Safety
/// All functions: the processor has the registers that the type stands for.
pub(super) trait Pack: Copy {
    /// Returns a bit for each value that is at least `bar`; NaN never is.
    unsafe fn at_least(row: &[f32; LANES], bar: f32) -> u32;

    /// Returns a bit for each value that `total_cmp` puts above `key`, and one for each that has its bits.
    unsafe fn ranks(row: &[f32; LANES], key: f32) -> (u32, u32);

    /// Adds the weights of those values that are at least `bar` to the sums beside them.
    unsafe fn add_where(sums: &mut [f32; LANES], weights: &[f32; LANES], row: &[f32; LANES], bar: f32);

    /// Returns the greatest of sixteen numbers, none of which is NaN; of zeros either.
    unsafe fn maximum(lanes: &[f32; LANES]) -> f32;

    /// Writes those of the sixteen numbers whose bit is set, one after the other, and anything behind them.
    ///
    /// # Safety
    /// `to` is good for sixteen numbers.
    unsafe fn pack(row: &[u32; LANES], mask: u32, to: *mut u32);
}

/// Returns bits that order, as signed numbers, as `total_cmp` does.
#[inline(always)]
pub(super) const fn rank(bits: u32) -> i32 {
    bits.cast_signed() ^ ((bits.cast_signed() >> 31).cast_unsigned() >> 1).cast_signed()
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Pack for Portable {
    #[inline(always)]
    unsafe fn at_least(row: &[f32; LANES], bar: f32) -> u32 {
        row.iter().rev().fold(0, |mask, value| mask << 1 | u32::from(*value >= bar))
    }

    #[inline(always)]
    unsafe fn ranks(row: &[f32; LANES], key: f32) -> (u32, u32) {
        let key = key.to_bits();
        row.iter().rev().fold((0, 0), |(above, equal), value| {
            let bits = value.to_bits();
            (above << 1 | u32::from(rank(bits) > rank(key)), equal << 1 | u32::from(bits == key))
        })
    }

    #[inline(always)]
    unsafe fn add_where(sums: &mut [f32; LANES], weights: &[f32; LANES], row: &[f32; LANES], bar: f32) {
        for i in 0..LANES {
            sums[i] += if row[i] >= bar { weights[i] } else { 0.0 };
        }
    }

    #[inline(always)]
    unsafe fn maximum(lanes: &[f32; LANES]) -> f32 {
        lanes.iter().fold(f32::NEG_INFINITY, |greatest, lane| if *lane > greatest { *lane } else { greatest })
    }

    #[inline(always)]
    unsafe fn pack(row: &[u32; LANES], mask: u32, to: *mut u32) {
        let mut n = 0;
        for (i, bits) in row.iter().enumerate() {
            // Without branches, which nobody could predict.
            // SAFETY: at most fifteen numbers lie before it.
            unsafe { to.add(n).write(*bits) };
            n += (mask >> i & 1) as usize;
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Pack, rank};

    /// AVX-512 (F).
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512;

    // SAFETY of all blocks below: the trait asks for the features, rows have sixteen numbers, and so has where they go.
    impl Pack for Avx512 {
        #[inline(always)]
        unsafe fn at_least(row: &[f32; LANES], bar: f32) -> u32 {
            unsafe {
                let row = _mm512_loadu_ps(row.as_ptr());
                u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(row, _mm512_set1_ps(bar)))
            }
        }

        #[inline(always)]
        unsafe fn ranks(row: &[f32; LANES], key: f32) -> (u32, u32) {
            unsafe {
                let row = _mm512_loadu_si512(row.as_ptr().cast());
                let ranks = _mm512_xor_si512(row, _mm512_srli_epi32::<1>(_mm512_srai_epi32::<31>(row)));
                let key = _mm512_set1_epi32(rank(key.to_bits()));
                let above = _mm512_cmpgt_epi32_mask(ranks, key);
                (u32::from(above), u32::from(_mm512_cmpeq_epi32_mask(ranks, key)))
            }
        }

        #[inline(always)]
        unsafe fn add_where(sums: &mut [f32; LANES], weights: &[f32; LANES], row: &[f32; LANES], bar: f32) {
            unsafe {
                let reaches = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(_mm512_loadu_ps(row.as_ptr()), _mm512_set1_ps(bar));
                let before = _mm512_loadu_ps(sums.as_ptr());
                let sum = _mm512_mask_add_ps(before, reaches, before, _mm512_loadu_ps(weights.as_ptr()));
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }

        #[inline(always)]
        unsafe fn maximum(lanes: &[f32; LANES]) -> f32 {
            unsafe { greatest(_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(8))) }
        }

        #[inline(always)]
        unsafe fn pack(row: &[u32; LANES], mask: u32, to: *mut u32) {
            unsafe {
                let row = _mm512_loadu_si512(row.as_ptr().cast());
                // Packed in a register: stores of a part are slow on some processors.
                #[expect(clippy::cast_possible_truncation, reason = "sixteen bits")]
                let packed = _mm512_maskz_compress_epi32(mask as u16, row);
                _mm512_storeu_si512(to.cast(), packed);
            }
        }
    }

    /// AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2;

    /// Where each of eight packed numbers comes from, a byte each, for every mask.
    const ORDER: [u64; 256] = order();

    const fn order() -> [u64; 256] {
        let mut orders = [0; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut bit, mut n, mut order) = (0, 0, 0);
            while bit < 8 {
                if mask >> bit & 1 == 1 {
                    order |= (bit as u64) << (8 * n);
                    n += 1;
                }
                bit += 1;
            }
            orders[mask] = order;
            mask += 1;
        }
        orders
    }

    // SAFETY of all blocks below: as above.
    impl Pack for Avx2 {
        #[inline(always)]
        unsafe fn at_least(row: &[f32; LANES], bar: f32) -> u32 {
            unsafe {
                let bar = _mm256_set1_ps(bar);
                let low = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_loadu_ps(row.as_ptr()), bar);
                let high = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_loadu_ps(row.as_ptr().add(8)), bar);
                both(_mm256_castps_si256(low), _mm256_castps_si256(high))
            }
        }

        #[inline(always)]
        unsafe fn ranks(row: &[f32; LANES], key: f32) -> (u32, u32) {
            unsafe {
                let key = _mm256_set1_epi32(rank(key.to_bits()));
                let (low, high) = (ranks(row.as_ptr()), ranks(row.as_ptr().add(8)));
                let above = both(_mm256_cmpgt_epi32(low, key), _mm256_cmpgt_epi32(high, key));
                (above, both(_mm256_cmpeq_epi32(low, key), _mm256_cmpeq_epi32(high, key)))
            }
        }

        #[inline(always)]
        unsafe fn add_where(sums: &mut [f32; LANES], weights: &[f32; LANES], row: &[f32; LANES], bar: f32) {
            unsafe {
                add_eight_where(sums.as_mut_ptr(), weights.as_ptr(), row.as_ptr(), bar);
                add_eight_where(sums.as_mut_ptr().add(8), weights.as_ptr().add(8), row.as_ptr().add(8), bar);
            }
        }

        #[inline(always)]
        unsafe fn maximum(lanes: &[f32; LANES]) -> f32 {
            unsafe { greatest(_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(8))) }
        }

        #[inline(always)]
        unsafe fn pack(row: &[u32; LANES], mask: u32, to: *mut u32) {
            unsafe {
                let (low, high) = (mask & 0xff, mask >> 8 & 0xff);
                pack_eight(row.as_ptr(), low, to);
                pack_eight(row.as_ptr().add(8), high, to.add(low.count_ones() as usize));
            }
        }
    }

    /// Returns the signs of sixteen numbers.
    #[inline(always)]
    unsafe fn both(low: __m256i, high: __m256i) -> u32 {
        unsafe {
            let (low, high) = (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
            (_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8).cast_unsigned()
        }
    }

    /// Returns what [`rank`] does of eight numbers.
    #[inline(always)]
    unsafe fn ranks(row: *const f32) -> __m256i {
        unsafe {
            let bits = _mm256_loadu_si256(row.cast());
            _mm256_xor_si256(bits, _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits)))
        }
    }

    /// Adds eight weights where values reach a bar.
    #[inline(always)]
    unsafe fn add_eight_where(sums: *mut f32, weights: *const f32, row: *const f32, bar: f32) {
        unsafe {
            let reaches = _mm256_cmp_ps::<_CMP_GE_OQ>(_mm256_loadu_ps(row), _mm256_set1_ps(bar));
            let weights = _mm256_and_ps(reaches, _mm256_loadu_ps(weights));
            _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), weights));
        }
    }

    /// Returns the greatest of sixteen numbers.
    #[inline(always)]
    unsafe fn greatest(low: __m256, high: __m256) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(low, high);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    /// Packs eight numbers.
    #[inline(always)]
    unsafe fn pack_eight(row: *const u32, mask: u32, to: *mut u32) {
        unsafe {
            let order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(ORDER[mask as usize].cast_signed()));
            let packed = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(row.cast()), order);
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
}
