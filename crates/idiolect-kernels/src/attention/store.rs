//! How keys and values lie in a block.

use super::{BLOCK_TOKENS, Dims};
use crate::lanes::{LANES, Lanes};

/// Elements of a head that share a scale in eight-bit blocks.
pub(super) const SCALE_LEN: usize = 32;

/// How the elements of a tile are kept: `[element][position]` of keys, and `dims.values` bytes further
/// `[position][element]` of values.
///
/// # Safety
/// All functions: `tile` is the first byte of a tile of these dimensions, positions and elements are inside it, and the
/// processor has the registers of `L`.
pub(super) trait Store {
    /// Element `d` of the keys of all positions.
    unsafe fn keys<L: Lanes>(tile: *const u8, dims: Dims, d: usize) -> L;
    /// Elements from `d` on of the value at `position`.
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L;
    /// Stores a key and a value of `dims.padded` elements.
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32);
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Q8;

impl Store for F32 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, _dims: Dims, d: usize) -> L {
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe { L::load(tile.cast::<f32>().add(d * BLOCK_TOKENS)) }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        // SAFETY: as above.
        unsafe { L::load(tile.add(dims.values).cast::<f32>().add(position * dims.padded + d)) }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
        unsafe {
            let (keys, values) = (tile.cast::<f32>(), tile.add(dims.values).cast::<f32>());
            for d in 0..dims.padded {
                *keys.add(d * BLOCK_TOKENS + position) = *key.add(d);
            }
            for d in (0..dims.padded).step_by(LANES) {
                L::load(value.add(d)).store(values.add(position * dims.padded + d));
            }
        }
    }
}

impl Store for F16 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, _dims: Dims, d: usize) -> L {
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe { L::load_f16(tile.cast::<u16>().add(d * BLOCK_TOKENS)) }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        // SAFETY: as above.
        unsafe { L::load_f16(tile.add(dims.values).cast::<u16>().add(position * dims.padded + d)) }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
        unsafe {
            let (keys, values) = (tile.cast::<u16>(), tile.add(dims.values).cast::<u16>());
            let mut halves = [0; LANES];
            for d in (0..dims.padded).step_by(LANES) {
                L::load(key.add(d)).store_f16(halves.as_mut_ptr());
                for (i, half) in halves.iter().enumerate() {
                    *keys.add((d + i) * BLOCK_TOKENS + position) = *half;
                }
                L::load(value.add(d)).store_f16(values.add(position * dims.padded + d));
            }
        }
    }
}

impl Q8 {
    /// Where the parts of a tile begin: bytes of keys, their scales (`[scale][position]`), bytes of values, their scales
    /// (`[position][scale]`).
    #[inline(always)]
    const fn parts(dims: Dims) -> [usize; 4] {
        [0, dims.elements(), dims.values, dims.values + dims.elements()]
    }
}

impl Store for Q8 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(tile: *const u8, dims: Dims, d: usize) -> L {
        let [keys, scales, ..] = Self::parts(dims);
        // SAFETY: the trait asks for a tile that holds the element.
        unsafe {
            let scale = L::load(tile.add(scales).cast::<f32>().add(d / SCALE_LEN * BLOCK_TOKENS));
            L::load_i8(tile.add(keys).cast::<i8>().add(d * BLOCK_TOKENS)).mul(scale)
        }
    }

    #[inline(always)]
    unsafe fn value<L: Lanes>(tile: *const u8, dims: Dims, position: usize, d: usize) -> L {
        let [_, _, values, scales] = Self::parts(dims);
        // SAFETY: as above.
        unsafe {
            let scale = *tile.add(scales).cast::<f32>().add(position * dims.scales + d / SCALE_LEN);
            L::load_i8(tile.add(values).cast::<i8>().add(position * dims.padded + d)).mul(L::splat(scale))
        }
    }

    #[inline(always)]
    unsafe fn put<L: Lanes>(tile: *mut u8, dims: Dims, position: usize, key: *const f32, value: *const f32) {
        let [keys, key_scales, values, value_scales] = Self::parts(dims);
        for part in 0..dims.scales {
            let elements = part * SCALE_LEN..((part + 1) * SCALE_LEN).min(dims.padded);
            // SAFETY: as above, and `key` and `value` have as many elements as a padded head.
            unsafe {
                let (scale, inverse) = scale_of(key, elements.clone());
                *tile.add(key_scales).cast::<f32>().add(part * BLOCK_TOKENS + position) = scale;
                for d in elements.clone() {
                    *tile.add(keys).cast::<i8>().add(d * BLOCK_TOKENS + position) = to_byte(*key.add(d) * inverse);
                }
                let (scale, inverse) = scale_of(value, elements.clone());
                *tile.add(value_scales).cast::<f32>().add(position * dims.scales + part) = scale;
                for d in elements {
                    *tile.add(values).cast::<i8>().add(position * dims.padded + d) = to_byte(*value.add(d) * inverse);
                }
            }
        }
    }
}

/// Returns the scale that brings some elements into bytes, and its inverse; no finite numbers where any element is none.
///
/// # Safety
/// The elements are there.
#[inline(always)]
unsafe fn scale_of(values: *const f32, elements: std::ops::Range<usize>) -> (f32, f32) {
    // Magnitudes compare like their bits, with infinity and NaN above all else.
    // SAFETY: the caller says so.
    let largest = elements.map(|d| unsafe { (*values.add(d)).abs().to_bits() }).max().unwrap_or(0);
    let scale = f32::from_bits(largest) / 127.0;
    (scale, if scale > 1e-30 { 1.0 / scale } else { 0.0 })
}

#[inline(always)]
fn to_byte(value: f32) -> i8 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 127; NaN becomes 0, its scale tells")]
    let byte = value.round_ties_even() as i8;
    byte
}
