//! From 32 numbers to signed bytes and a scale.

use crate::format::BLOCK;

/// What belongs to a block besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Encoded {
    /// What the bytes are to be multiplied by; no finite number when any value was none.
    pub(crate) scale: f32,
    /// The sums of the first and the last sixteen bytes.
    pub(crate) halves: [i32; 2],
}

/// Encodes blocks one after the other into every `step`th of `quants`, and tells the place and what belongs to each. All
/// processors have the same results, but for the bytes where the scale is no number.
pub(crate) fn encode_blocks(
    blocks: &[[f32; BLOCK]],
    quants: &mut [[i8; BLOCK]],
    step: usize,
    mut each: impl FnMut(usize, Encoded),
) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        return x86::encode_blocks(blocks, quants, step, each);
    }
    for (at, (values, quants)) in blocks.iter().zip(quants.iter_mut().step_by(step)).enumerate() {
        each(at * step, encode(values, quants));
    }
}

/// Returns the scale and what to multiply the values by.
#[inline]
fn scale_and_inverse(largest: f32) -> (f32, f32) {
    // For the smallest numbers the inverse would be infinite; they become zero.
    (largest * (1.0 / 127.0), if largest > 1e-35 { 127.0 / largest } else { 0.0 })
}

/// Encodes in plain Rust.
fn encode(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> Encoded {
    // Magnitudes compare like their bits, and then infinity and NaN are the greatest instead of getting lost.
    let largest = values.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).cast_signed().max(largest));
    let (scale, inverse) = scale_and_inverse(f32::from_bits(largest.cast_unsigned()));
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = round_to_i8(value * inverse);
    }
    let (first, second) = quants.split_at(BLOCK / 2);
    let sum = |quants: &[i8]| quants.iter().map(|quant| i32::from(*quant)).sum();
    Encoded { scale, halves: [sum(first), sum(second)] }
}

/// Rounds a value of at most 2²² in magnitude to the nearest integer, to an even one from halfway, and returns its low
/// byte.
#[inline]
fn round_to_i8(value: f32) -> i8 {
    // Adding 1.5 · 2²³ leaves the integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    ((value + MAGIC).to_bits() as u8).cast_signed()
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi128_si32, _mm_max_epi32, _mm_shuffle_epi32, _mm256_add_epi32, _mm256_and_si256,
        _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cvtps_epi32, _mm256_extracti128_si256, _mm256_loadu_ps,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epi32, _mm256_mul_ps, _mm256_packs_epi16,
        _mm256_packs_epi32, _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_set1_ps, _mm256_setr_epi32, _mm256_shuffle_epi32, _mm256_storeu_si256,
    };

    use super::{BLOCK, Encoded, scale_and_inverse};

    /// Encodes with AVX2, which callers checked that the processor has.
    pub(super) fn encode_blocks(
        blocks: &[[f32; BLOCK]],
        quants: &mut [[i8; BLOCK]],
        step: usize,
        each: impl FnMut(usize, Encoded),
    ) {
        // SAFETY: the only caller asks for AVX2 first.
        unsafe { encode_blocks_avx2(blocks, quants, step, each) }
    }

    #[target_feature(enable = "avx2")]
    fn encode_blocks_avx2(
        blocks: &[[f32; BLOCK]],
        quants: &mut [[i8; BLOCK]],
        step: usize,
        mut each: impl FnMut(usize, Encoded),
    ) {
        for (at, (values, quants)) in blocks.iter().zip(quants.iter_mut().step_by(step)).enumerate() {
            each(at * step, encode_avx2(values, quants));
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn encode_avx2(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> Encoded {
        let from = values.as_ptr();
        // SAFETY: there are four times eight values.
        let values = unsafe {
            [
                _mm256_loadu_ps(from),
                _mm256_loadu_ps(from.add(8)),
                _mm256_loadu_ps(from.add(16)),
                _mm256_loadu_ps(from.add(24)),
            ]
        };
        let mask = _mm256_set1_epi32(0x7fff_ffff);
        let [a, b, c, d] = values;
        let low = _mm256_max_epi32(
            _mm256_and_si256(_mm256_castps_si256(a), mask),
            _mm256_and_si256(_mm256_castps_si256(b), mask),
        );
        let high = _mm256_max_epi32(
            _mm256_and_si256(_mm256_castps_si256(c), mask),
            _mm256_and_si256(_mm256_castps_si256(d), mask),
        );
        let eight = _mm256_max_epi32(low, high);
        let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b_01_00_11_10>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b_10_11_00_01>(two));
        let (scale, inverse) = scale_and_inverse(f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned()));
        let inverse = _mm256_set1_ps(inverse);
        let first = _mm256_packs_epi32(
            _mm256_cvtps_epi32(_mm256_mul_ps(a, inverse)),
            _mm256_cvtps_epi32(_mm256_mul_ps(b, inverse)),
        );
        let second = _mm256_packs_epi32(
            _mm256_cvtps_epi32(_mm256_mul_ps(c, inverse)),
            _mm256_cvtps_epi32(_mm256_mul_ps(d, inverse)),
        );
        // Packing works on each half of a register; the permutation restores the order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
        // SAFETY: there is room for thirty-two bytes.
        unsafe { _mm256_storeu_si256(quants.as_mut_ptr().cast::<__m256i>(), bytes) };
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b_01_00_11_10>(fours));
        let sums = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b_10_11_00_01>(eights));
        let halves =
            [_mm_cvtsi128_si32(_mm256_castsi256_si128(sums)), _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums))];
        Encoded { scale, halves }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Encodes on the fastest way of this processor.
    fn fastest(values: &[f32; BLOCK]) -> (Encoded, [i8; BLOCK]) {
        let mut quants = [[0; BLOCK]];
        let mut encoded = Vec::new();
        encode_blocks(&[*values], &mut quants, 1, |_, block| encoded.push(block));
        (encoded[0], quants[0])
    }

    fn check(values: &[f32; BLOCK]) {
        let mut plain = [0; BLOCK];
        let encoded = encode(values, &mut plain);
        assert_eq!(fastest(values), (encoded, plain), "{values:?}");
        for (value, quant) in values.iter().zip(plain) {
            let scale = f64::from(encoded.scale);
            let error = (f64::from(*value) - f64::from(quant) * scale).abs();
            assert!(error <= scale * 0.5001 || value.abs() <= 1e-35, "{value} as {quant} x {scale}");
            assert!(quant != i8::MIN);
        }
        let sum: i32 = plain.iter().map(|quant| i32::from(*quant)).sum();
        assert_eq!(sum, encoded.halves[0] + encoded.halves[1]);
    }

    #[test]
    fn awkward_blocks() {
        check(&[0.0; BLOCK]);
        check(&[-1.0; BLOCK]);
        check(&[f32::MAX; BLOCK]);
        check(&[f32::MIN_POSITIVE; BLOCK]);
        check(&[f32::from_bits(1); BLOCK]);
        check(&std::array::from_fn(|i| i as f32 - 15.5));
        check(&std::array::from_fn(|i| if i == 7 { 127.0 } else { i as f32 + 0.5 }));
    }

    #[test]
    fn what_is_no_number_shows_in_the_scale() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 13, 31] {
                let mut values = [1.0; BLOCK];
                values[at] = bad;
                let mut quants = [0; BLOCK];
                assert!(!encode(&values, &mut quants).scale.is_finite(), "{bad}");
                assert!(!fastest(&values).0.scale.is_finite(), "{bad}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_block(values in prop::array::uniform32(-1e3f32..1e3), exponent in -40i32..30) {
            check(&values.map(|value| value * 10f32.powi(exponent)));
        }
    }
}
