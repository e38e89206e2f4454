//! Products with AVX-512 and its byte dot product: sixteen weight rows side by side in a register.
//!
//! A group of up to eight activation rows goes through a tile at once, so that weights are unpacked once for eight. Where
//! unpacking is much work and there are many groups, a tile is first unpacked to memory, and the groups share that.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _MM_HINT_T1, _mm_cvtsi32_si128, _mm_load_si128, _mm_prefetch, _mm256_load_si256,
    _mm256_loadu_si256, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_ps,
    _mm512_load_si512, _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sll_epi16, _mm512_slli_epi32, _mm512_srl_epi16,
    _mm512_srli_epi16, _mm512_store_ps, _mm512_store_si512, _mm512_sub_ps,
};
use std::cell::RefCell;

use super::{Work, visited};
use crate::activations::Group;
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, ROWS, kind, offset, quant_bytes, unit_blocks, unit_bytes};

/// Groups from which on it pays to unpack a tile to memory, where that is much work.
const UNPACK_FROM: usize = 8;

/// How far ahead weights are fetched into the second-level cache, in bytes.
const AHEAD: usize = 8192;

/// Lines that a block takes when it is unpacked to memory.
const MEMORY_LINES: usize = 10;

thread_local! {
    /// The tile that a thread has unpacked.
    static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Sixteen numbers, or four columns of bytes for sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    work.check();
    // SAFETY: a matrix of this tier is only made where the processor has its instructions; `Work::check`,
    // `Work::tile` and `Work::output` are the bounds that the kernels rely on.
    unsafe {
        match work.section.layout.format {
            Format::F32 => floats::<F32>(work),
            Format::F16 => floats::<F16>(work),
            Format::Bf16 => floats::<Bf16>(work),
            Format::Q4_0 => quantised::<Q4_0>(work),
            Format::Q4_1 => quantised::<Q4_1>(work),
            Format::Q5_0 => quantised::<Q5_0>(work),
            Format::Q5_1 => quantised::<Q5_1>(work),
            Format::Q8_0 => quantised::<Q8_0>(work),
            Format::Q4K => quantised::<Q4K>(work),
            Format::Q5K => quantised::<Q5K>(work),
            Format::Q6K => quantised::<Q6K>(work),
        }
    }
}

/// Where a group's encoded rows are.
#[derive(Clone, Copy)]
struct Rows<'a> {
    quants: *const i8,
    scales: *const f32,
    sums: *const f32,
    starts: *const i32,
    /// Rows in the group.
    n: usize,
    /// The blocks that come again after the last.
    again: &'a [u32],
}

impl<'a> Rows<'a> {
    fn new(group: &'a Group, format: Format) -> Self {
        let starts = match (kind(format), offset(format)) {
            (Kind::Halves, _) => group.halves.as_ptr().cast::<i32>(),
            (_, 16) => group.starts[1].as_ptr(),
            (_, 128) => group.starts[2].as_ptr(),
            _ => group.starts[0].as_ptr(),
        };
        Self {
            quants: group.quants.as_ptr(),
            scales: group.scales.as_ptr(),
            sums: group.sums.as_ptr(),
            starts,
            n: group.rows,
            again: &group.again,
        }
    }

    /// Returns the same rows one block further on.
    ///
    /// # Safety
    /// There is a block where these are.
    #[inline]
    unsafe fn next_block<F: Quantised>(self) -> Self {
        let starts = if matches!(F::KIND, Kind::Halves) { 2 * self.n } else { self.n };
        // SAFETY: the caller says so.
        unsafe {
            Self {
                quants: self.quants.add(self.n * BLOCK),
                scales: self.scales.add(self.n),
                sums: self.sums.add(self.n),
                starts: self.starts.add(starts),
                ..self
            }
        }
    }
}

/// Scales of one block for sixteen rows, and what else it has: minima, or the scales of the second half.
type Scales = (__m512, __m512);

/// Scales of [`SUPER`] blocks, unpacked.
#[repr(C, align(64))]
struct Unpacked([[[f32; ROWS]; 2]; SUPER]);

/// How a quantised format is read.
trait Quantised {
    const KIND: Kind;
    /// Blocks in a unit.
    const UNIT: usize;
    /// Bytes of a block's quants.
    const SIZE: usize;
    /// Bytes of a unit.
    const UNIT_BYTES: usize;
    /// Whether it comes from far away.
    const FETCH: bool;
    /// Groups from which on it pays to unpack a tile to memory.
    const UNPACK_FROM: usize;

    /// What is kept of a unit's scales.
    type Held;
    /// The same before the first unit.
    const NOTHING: Self::Held;
    /// How an unpacked tile is read.
    type InMemory: Quantised;

    /// Returns groups `i` and `i + 4` of a block.
    ///
    /// # Safety
    /// A block's quants are at `quants`, `i` is below 4, and the processor has this module's instructions.
    unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i);

    /// Begins a unit.
    ///
    /// # Safety
    /// Its scales are at `scales`, and the processor has this module's instructions.
    unsafe fn enter(scales: *const u8, held: &mut Self::Held);

    /// Returns the scales of a block.
    ///
    /// # Safety
    /// The unit that was entered is still there and has that block, and the processor has this module's instructions.
    unsafe fn scales(held: &Self::Held, block: usize) -> Scales;
}

/// Splits sixty-four bytes into their lower and upper halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn nibbles(bytes: __m512i) -> (__m512i, __m512i) {
    let mask = _mm512_set1_epi8(15);
    (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
}

/// Shifts to the left, or to the right where `by` is negative, and keeps the bits of `mask` in each byte.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn bits(bytes: __m512i, by: i32, mask: i8) -> __m512i {
    let shifted = if by >= 0 {
        _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(by))
    } else {
        _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
    };
    _mm512_and_si512(shifted, _mm512_set1_epi8(mask))
}

/// Loads a line.
///
/// # Safety
/// There is one at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn line(at: *const u8) -> __m512i {
    // SAFETY: the caller says so.
    unsafe { _mm512_load_si512(at.cast::<__m512i>()) }
}

/// Loads sixteen half precision numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller says so.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast::<__m256i>()) })
}

/// Four bits: groups `i` and `i + 4` share a line.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair4(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    nibbles(unsafe { line(quants.add(i * LINE)) })
}

/// Five bits: a fifth line has the highest.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair5(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    let (low, high) = unsafe { pair4(quants, i) };
    // SAFETY: likewise.
    let fifth = unsafe { line(quants.add(4 * LINE)) };
    let by = i as i32;
    (_mm512_or_si512(low, bits(fifth, 4 - by, 16)), _mm512_or_si512(high, bits(fifth, -by, 16)))
}

/// Scales alone.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn scale(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    (unsafe { halves(scales.add(block * 2 * ROWS)) }, _mm512_setzero_ps())
}

/// Scales and minima.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn scale_and_minimum(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    unsafe {
        let at = scales.add(block * 4 * ROWS);
        (halves(at), halves(at.add(2 * ROWS)))
    }
}

/// Unpacks the scales and minima of eight blocks, in six bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter6(at: *const u8, unpacked: &mut Unpacked) {
    #[repr(C, align(64))]
    struct Lines([[u8; LINE]; 4]);
    let mut lines = Lines([[0; LINE]; 4]);
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let (first, second, third) = (line(at), line(at.add(LINE)), line(at.add(2 * LINE)));
        let (scale, minimum) = (halves(at.add(12 * ROWS)), halves(at.add(14 * ROWS)));
        let six = _mm512_set1_epi8(63);
        let (low, high) = nibbles(third);
        let to = lines.0.as_mut_ptr().cast::<__m512i>();
        // Parts 0 to 3 and 4 to 7 of the scales, then of the minima.
        _mm512_store_si512(to, _mm512_and_si512(first, six));
        _mm512_store_si512(to.add(1), _mm512_or_si512(low, bits(first, -2, 0x30)));
        _mm512_store_si512(to.add(2), _mm512_and_si512(second, six));
        _mm512_store_si512(to.add(3), _mm512_or_si512(high, bits(second, -2, 0x30)));
        let from = lines.0.as_ptr().cast::<__m128i>();
        for (part, [scales, minima]) in unpacked.0.iter_mut().enumerate() {
            let of_scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(from.add(part))));
            _mm512_store_ps(scales.as_mut_ptr(), _mm512_mul_ps(scale, of_scale));
            let of_minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(from.add(SUPER + part))));
            let product = _mm512_mul_ps(minimum, of_minimum);
            _mm512_store_ps(minima.as_mut_ptr(), _mm512_sub_ps(_mm512_set1_ps(-0.0), product));
        }
    }
}

/// Returns unpacked scales.
///
/// # Safety
/// The processor has this module's instructions.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn unpacked_scales(unpacked: &Unpacked, block: usize) -> Scales {
    let [first, second] = &unpacked.0[block];
    // SAFETY: both are whole lines.
    unsafe { (_mm512_load_ps(first.as_ptr()), _mm512_load_ps(second.as_ptr())) }
}

macro_rules! quantised {
    ($name:ident, $memory:ident, $pair:ident, $scales:ident) => {
        struct $name;

        impl Quantised for $name {
            const KIND: Kind = kind(Format::$name);
            const UNIT: usize = unit_blocks(Format::$name);
            const SIZE: usize = quant_bytes(Format::$name);
            const UNIT_BYTES: usize = unit_bytes(Format::$name);
            const FETCH: bool = true;
            const UNPACK_FROM: usize = match Format::$name {
                Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => usize::MAX,
                _ => UNPACK_FROM,
            };
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();
            type InMemory = $memory;

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn enter(scales: *const u8, held: &mut *const u8) {
                *held = scales;
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn scales(held: &*const u8, block: usize) -> Scales {
                // SAFETY: the caller says so.
                unsafe { $scales(*held, block) }
            }
        }
    };
}

quantised!(Q4_0, MemoryOffset, pair4, scale);
quantised!(Q4_1, MemoryMinimum, pair4, scale_and_minimum);
quantised!(Q5_0, MemoryOffset, pair5, scale);
quantised!(Q5_1, MemoryMinimum, pair5, scale_and_minimum);
quantised!(Q8_0, MemoryOffset, pair8, scale);

/// Eight bits.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair8(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    unsafe { (line(quants.add(i * LINE)), line(quants.add((i + 4) * LINE))) }
}

macro_rules! k_quantised {
    ($name:ident, $memory:ident, $pair:ident, $enter:ident) => {
        struct $name;

        impl Quantised for $name {
            const KIND: Kind = kind(Format::$name);
            const UNIT: usize = SUPER;
            const SIZE: usize = quant_bytes(Format::$name);
            const UNIT_BYTES: usize = unit_bytes(Format::$name);
            const FETCH: bool = true;
            const UNPACK_FROM: usize = UNPACK_FROM;
            type Held = Unpacked;
            const NOTHING: Unpacked = Unpacked([[[0.0; ROWS]; 2]; SUPER]);
            type InMemory = $memory;

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn enter(scales: *const u8, held: &mut Unpacked) {
                // SAFETY: the caller says so.
                unsafe { $enter(scales, held) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn scales(held: &Unpacked, block: usize) -> Scales {
                // SAFETY: the caller says so.
                unsafe { unpacked_scales(held, block) }
            }
        }
    };
}

k_quantised!(Q4K, MemoryMinimum, pair4, enter6);
k_quantised!(Q5K, MemoryMinimum, pair5, enter6);
k_quantised!(Q6K, MemoryHalves, pair6, enter8);

/// Six bits: two more lines have the highest two, one for each half of the groups.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair6(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    let (low, high, first, second) = unsafe {
        let (low, high) = pair4(quants, i);
        (low, high, line(quants.add(4 * LINE)), line(quants.add(5 * LINE)))
    };
    let by = 4 - 2 * i as i32;
    (_mm512_or_si512(low, bits(first, by, 0x30)), _mm512_or_si512(high, bits(second, by, 0x30)))
}

/// Unpacks the scales of both halves of eight blocks, in eight bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter8(at: *const u8, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = std::arch::x86_64::_mm_loadu_si128(at.add(part * ROWS).cast::<__m128i>());
            _mm512_store_ps(to.as_mut_ptr(), _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))));
        }
    }
}

macro_rules! memory {
    ($name:ident, $kind:ident) => {
        /// A tile of this kind that was unpacked to memory: for each block, bytes in whole lines, then scales in single
        /// precision.
        struct $name;

        impl Quantised for $name {
            const KIND: Kind = Kind::$kind;
            const UNIT: usize = 1;
            const SIZE: usize = 8 * LINE;
            const UNIT_BYTES: usize = MEMORY_LINES * LINE;
            const FETCH: bool = false;
            const UNPACK_FROM: usize = usize::MAX;
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();
            type InMemory = Self;

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
                // SAFETY: the caller says so.
                unsafe { pair8(quants, i) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn enter(scales: *const u8, held: &mut *const u8) {
                *held = scales;
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn scales(held: &*const u8, _block: usize) -> Scales {
                let at = held.cast::<f32>();
                // SAFETY: the caller says so; there are two lines for each block.
                unsafe { (_mm512_load_ps(at), _mm512_load_ps(at.add(ROWS))) }
            }
        }
    };
}

memory!(MemoryOffset, Offset);
memory!(MemoryMinimum, Minimum);
memory!(MemoryHalves, Halves);

/// Multiplies the tiles with all groups.
///
/// # Safety
/// The processor has the instructions, and the groups hold as many values as the layout says.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn quantised<F: Quantised>(work: &Work<'_>) {
    let layout = work.section.layout;
    let (format, blocks) = (layout.format, layout.blocks());
    // SAFETY: `Work::tile` gives whole tiles, aligned to lines; the caller says that the groups are whole.
    unsafe {
        if work.groups.len() < F::UNPACK_FROM {
            for tile in work.tiles.clone() {
                let at = work.tile(tile).as_ptr();
                for (index, group) in work.groups.iter().enumerate() {
                    multiply_group::<F>(work, at, blocks, tile, index, Rows::new(group, format));
                }
            }
            return;
        }
        let mut memory = UNPACKED.with_borrow_mut(std::mem::take);
        memory.resize(blocks * MEMORY_LINES, Line([0; LINE]));
        for tile in work.tiles.clone() {
            let to = memory.as_mut_ptr().cast::<u8>();
            unpack::<F>(work.tile(tile).as_ptr(), to, blocks);
            // Each group asks for its share of the next tile.
            let size = layout.tile_bytes();
            let share = size.div_ceil(work.groups.len()).next_multiple_of(LINE);
            for (index, group) in work.groups.iter().enumerate() {
                fetch(work.tile(tile).as_ptr().wrapping_add(size + index * share), share);
                multiply_group::<F::InMemory>(work, to, blocks, tile, index, Rows::new(group, format));
            }
        }
        UNPACKED.set(memory);
    }
}

/// Unpacks a tile to memory.
///
/// # Safety
/// There is a packed tile of so many blocks, and room for [`MEMORY_LINES`] for each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn unpack<F: Quantised>(tile: *const u8, to: *mut u8, blocks: usize) {
    let mut held = F::NOTHING;
    for block in 0..blocks {
        // SAFETY: the caller says so.
        unsafe {
            let unit = tile.add(block / F::UNIT * F::UNIT_BYTES);
            if block % F::UNIT == 0 {
                F::enter(unit.add(F::UNIT * F::SIZE), &mut held);
            }
            let from = unit.add(block % F::UNIT * F::SIZE);
            let to = to.add(block * MEMORY_LINES * LINE).cast::<__m512i>();
            for i in 0..4 {
                let (low, high) = F::pair(from, i);
                _mm512_store_si512(to.add(i), low);
                _mm512_store_si512(to.add(i + 4), high);
            }
            let (first, second) = F::scales(&held, block % F::UNIT);
            _mm512_store_ps(to.add(8).cast::<f32>(), first);
            _mm512_store_ps(to.add(9).cast::<f32>(), second);
        }
    }
}

/// Multiplies one tile with a group and stores the products.
///
/// # Safety
/// The tile and the group have so many blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn multiply_group<F: Quantised>(
    work: &Work<'_>,
    tile: *const u8,
    blocks: usize,
    index: usize,
    group: usize,
    rows: Rows<'_>,
) {
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match rows.n {
                $(
                    $n => {
                        // SAFETY: the caller says so.
                        let sums = unsafe { dots::<F, $n>(tile, rows, blocks) };
                        store(work, index, group, &sums);
                    }
                )*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8);
}

/// Stores the products of a tile with the rows of a group.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(work: &Work<'_>, tile: usize, group: usize, sums: &[__m512]) {
    for (row, sums) in sums.iter().enumerate() {
        let (to, n) = work.output(tile, group, row);
        // SAFETY: `output` gives room for n numbers that only this task writes.
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, *sums) };
    }
}

/// Multiplies a tile with `N` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
unsafe fn dots<F: Quantised, const N: usize>(tile: *const u8, mut rows: Rows<'_>, blocks: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut held = F::NOTHING;
    let units = blocks.div_ceil(F::UNIT);
    for visit in 0..units + rows.again.len() {
        let (unit, inside) = visited(visit, F::UNIT, blocks, rows.again);
        // SAFETY: unit and block are below what the caller says is there, and each row index below `N`.
        unsafe {
            let unit_at = tile.add(unit * F::UNIT_BYTES);
            let scales = unit_at.add(F::UNIT * F::SIZE);
            F::enter(scales, &mut held);
            if F::FETCH && visit < units {
                fetch(scales.wrapping_add(AHEAD), F::UNIT_BYTES - F::UNIT * F::SIZE);
            }
            for block in inside {
                let quants = unit_at.add(block * F::SIZE);
                if F::FETCH && visit < units {
                    fetch(quants.wrapping_add(AHEAD), F::SIZE);
                }
                // Loops rather than closures: those would not become part of this function's instructions for sure.
                let mut first = [_mm512_setzero_si512(); N];
                let mut second = [_mm512_setzero_si512(); N];
                for j in 0..N {
                    match F::KIND {
                        Kind::Offset => first[j] = _mm512_set1_epi32(*rows.starts.add(j)),
                        Kind::Minimum => {}
                        Kind::Halves => {
                            first[j] = _mm512_set1_epi32(*rows.starts.add(2 * j));
                            second[j] = _mm512_set1_epi32(*rows.starts.add(2 * j + 1));
                        }
                    }
                }
                let activations = rows.quants.cast::<i32>();
                for i in 0..4 {
                    let (low, high) = F::pair(quants, i);
                    for j in 0..N {
                        let at = activations.add(j * (BLOCK / 4) + i);
                        let of_low = _mm512_set1_epi32(at.read_unaligned());
                        let of_high = _mm512_set1_epi32(at.add(4).read_unaligned());
                        first[j] = _mm512_dpbusd_epi32(first[j], low, of_low);
                        let other = match F::KIND {
                            Kind::Halves => &mut second[j],
                            Kind::Offset | Kind::Minimum => &mut first[j],
                        };
                        *other = _mm512_dpbusd_epi32(*other, high, of_high);
                    }
                }
                let (scale, other) = F::scales(&held, block);
                for (j, sum) in sums.iter_mut().enumerate() {
                    let mut scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(first[j]), scale);
                    if matches!(F::KIND, Kind::Halves) {
                        scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second[j]), other, scaled);
                    }
                    *sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*rows.scales.add(j)), *sum);
                    if matches!(F::KIND, Kind::Minimum) {
                        *sum = _mm512_fmadd_ps(other, _mm512_set1_ps(*rows.sums.add(j)), *sum);
                    }
                }
                rows = rows.next_block::<F>();
            }
        }
    }
    sums
}

/// Asks for so many bytes.
#[inline]
fn fetch(at: *const u8, bytes: usize) {
    for line in 0..bytes / LINE {
        // SAFETY: fetching is allowed at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * LINE).cast::<i8>()) };
    }
}

/// How a floating point format is read.
trait Floats {
    const SIZE: usize;

    /// Loads sixteen numbers.
    ///
    /// # Safety
    /// They are at `at`, and the processor has this module's instructions.
    unsafe fn load(at: *const u8) -> __m512;
}

struct F32;
struct F16;
struct Bf16;

impl Floats for F32 {
    const SIZE: usize = 4;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        unsafe { _mm512_load_ps(at.cast::<f32>()) }
    }
}

impl Floats for F16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        unsafe { halves(at) }
    }
}

impl Floats for Bf16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        let bits = unsafe { _mm256_load_si256(at.cast::<__m256i>()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }
}

/// Multiplies tiles of floating point numbers with all groups.
///
/// # Safety
/// As for [`quantised`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn floats<F: Floats>(work: &Work<'_>) {
    let blocks = work.section.layout.blocks();
    for tile in work.tiles.clone() {
        let weights = work.tile(tile).as_ptr();
        for (index, group) in work.groups.iter().enumerate() {
            macro_rules! dispatch {
                ($($n:literal)*) => {
                    match group.rows {
                        $(
                            $n => {
                                // SAFETY: the caller says that the group is whole, and the tile is.
                                let sums = unsafe { float_dots::<F, $n>(weights, group.floats.as_ptr(), blocks) };
                                store(work, tile, index, &sums);
                            }
                        )*
                        _ => {}
                    }
                };
            }
            dispatch!(1 2 3 4 5 6 7 8);
        }
    }
}

/// Multiplies a tile of floating point numbers with `N` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
unsafe fn float_dots<F: Floats, const N: usize>(weights: *const u8, rows: *const f32, blocks: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    for block in 0..blocks {
        for k in 0..BLOCK {
            // SAFETY: the caller says that there are so many blocks of `N` rows.
            unsafe {
                let from = weights.add((block * BLOCK + k) * ROWS * F::SIZE);
                _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(AHEAD).cast::<i8>());
                let weights = F::load(from);
                for (j, sum) in sums.iter_mut().enumerate() {
                    let value = *rows.add((block * N + j) * BLOCK + k);
                    *sum = _mm512_fmadd_ps(weights, _mm512_set1_ps(value), *sum);
                }
            }
        }
    }
    sums
}
