//! What all kernels with vector instructions share: how packed tiles are read, which differs in the instructions alone,
//! and products of floating point formats.
//!
//! A register holds numbers of some of a tile's rows: those are a *part* of the tile. Pointers are to what belongs to one
//! part; what belongs to the next lies as many rows further on, in each line of quants and in each row of scales.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::cell::RefCell;

use crate::activations::Group;
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, kind, offset};

/// Lines that a block takes when it is unpacked to memory.
pub(super) const MEMORY_LINES: usize = 10;

thread_local! {
    /// The tile that a thread has unpacked.
    static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Sixteen numbers, or four columns of bytes for sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Lends out memory for a tile of so many blocks, aligned to lines.
pub(super) fn with_memory(blocks: usize, work: impl FnOnce(*mut u8)) {
    let mut memory = UNPACKED.take();
    memory.resize(blocks * MEMORY_LINES, Line([0; LINE]));
    work(memory.as_mut_ptr().cast::<u8>());
    UNPACKED.set(memory);
}

/// Where a group's encoded rows are.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) quants: *const i8,
    pub(super) scales: *const f32,
    pub(super) sums: *const f32,
    pub(super) starts: *const i32,
    /// Numbers in `starts` for each row.
    n_starts: usize,
    /// Rows in the group.
    pub(super) n: usize,
    /// The blocks that come again after the last.
    pub(super) again: &'a [u32],
}

impl<'a> Rows<'a> {
    pub(super) fn new(group: &'a Group, format: Format) -> Self {
        let (starts, n_starts) = match (kind(format), offset(format)) {
            (Kind::Halves, _) => (group.halves.as_ptr().cast::<i32>(), 2),
            (_, 16) => (group.starts[1].as_ptr(), 1),
            (_, 128) => (group.starts[2].as_ptr(), 1),
            _ => (group.starts[0].as_ptr(), 1),
        };
        Self {
            quants: group.quants.as_ptr(),
            scales: group.scales.as_ptr(),
            sums: group.sums.as_ptr(),
            starts,
            n_starts,
            n: group.rows,
            again: &group.again,
        }
    }

    /// Skips so many rows of a block, which are followed by the rows of the next.
    ///
    /// # Safety
    /// There are so many.
    #[inline]
    pub(super) unsafe fn skip(self, rows: usize) -> Self {
        // SAFETY: the caller says so.
        unsafe {
            Self {
                quants: self.quants.add(rows * BLOCK),
                scales: self.scales.add(rows),
                sums: self.sums.add(rows),
                starts: self.starts.add(rows * self.n_starts),
                ..self
            }
        }
    }
}

/// Scales of [`SUPER`] blocks for the `N` rows of a part, unpacked.
#[repr(C, align(64))]
pub(super) struct Unpacked<const N: usize>(pub(super) [[[f32; N]; 2]; SUPER]);

/// How a quantised format is read.
pub(super) trait Quantised {
    const KIND: Kind;
    /// The largest byte.
    const LARGEST: i16;
    /// Blocks in a unit.
    const UNIT: usize;
    /// Bytes of a block's quants.
    const SIZE: usize;
    /// Bytes of a unit.
    const UNIT_BYTES: usize;
    /// Whether it comes from far away.
    const FETCH: bool;
    /// Whether it takes so little to read that it is not worth being unpacked to memory.
    const SIMPLE: bool;

    /// A register of bytes, and one of numbers.
    type Bytes;
    type Numbers;
    /// What is kept of a unit's scales.
    type Held;
    /// The same before the first unit.
    const NOTHING: Self::Held;

    /// Returns groups `i` and `i + 4` of a block.
    ///
    /// # Safety
    /// A block's quants are at `quants`, `i` is below 4, and the processor has the module's instructions.
    unsafe fn pair(quants: *const u8, i: usize) -> (Self::Bytes, Self::Bytes);

    /// Begins a unit.
    ///
    /// # Safety
    /// Its scales are at `scales`, the tile has the part, and the processor has the module's instructions.
    unsafe fn enter(scales: *const u8, part: usize, held: &mut Self::Held);

    /// Returns the scales of a block, and what else it has: minima, or the scales of the second half.
    ///
    /// # Safety
    /// The unit that was entered is still there and has that block, and the processor has the module's instructions.
    unsafe fn scales(held: &Self::Held, block: usize) -> (Self::Numbers, Self::Numbers);
}

/// How a floating point format is read.
pub(super) trait Floats {
    const SIZE: usize;
    /// A register of numbers.
    type Numbers;

    /// Loads a register of numbers.
    ///
    /// # Safety
    /// They are at `at`, aligned to their size, and the processor has the module's instructions.
    unsafe fn load(at: *const u8) -> Self::Numbers;
}

/// Calls one function for floating point formats and another for quantised ones.
macro_rules! for_format {
    ($work:ident, $floats:ident, $quantised:ident) => {
        match $work.section.layout.format {
            Format::F32 => $floats::<F32>($work),
            Format::F16 => $floats::<F16>($work),
            Format::Bf16 => $floats::<Bf16>($work),
            Format::Q4_0 => $quantised::<Q4_0>($work),
            Format::Q4_1 => $quantised::<Q4_1>($work),
            Format::Q5_0 => $quantised::<Q5_0>($work),
            Format::Q5_1 => $quantised::<Q5_1>($work),
            Format::Q8_0 => $quantised::<Q8_0>($work),
            Format::Q4K => $quantised::<Q4K>($work),
            Format::Q5K => $quantised::<Q5K>($work),
            Format::Q6K => $quantised::<Q6K>($work),
        }
    };
}
pub(super) use for_format;

/// Makes the reader of a format whose scales are read where they are.
macro_rules! quantised {
    ($features:literal, $bytes:ty, $numbers:ty, $name:ident, $largest:literal, $pair:ident, $scales:ident) => {
        struct $name;

        impl Quantised for $name {
            const KIND: Kind = kind(Format::$name);
            const LARGEST: i16 = $largest;
            const UNIT: usize = unit_blocks(Format::$name);
            const SIZE: usize = quant_bytes(Format::$name);
            const UNIT_BYTES: usize = unit_bytes(Format::$name);
            const FETCH: bool = true;
            const SIMPLE: bool = matches!(Format::$name, Format::Q4_0 | Format::Q4_1 | Format::Q8_0);
            type Bytes = $bytes;
            type Numbers = $numbers;
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> ($bytes, $bytes) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn enter(scales: *const u8, part: usize, held: &mut *const u8) {
                // SAFETY: all parts' scales are there.
                *held = unsafe { scales.add(part * 2 * PART) };
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn scales(held: &*const u8, block: usize) -> ($numbers, $numbers) {
                // SAFETY: the caller says so.
                unsafe { $scales(*held, block) }
            }
        }
    };
}
pub(super) use quantised;

/// Makes the reader of a format whose scales are unpacked, unit by unit.
macro_rules! k_quantised {
    ($features:literal, $bytes:ty, $numbers:ty, $name:ident, $largest:literal, $pair:ident, $enter:ident) => {
        struct $name;

        impl Quantised for $name {
            const KIND: Kind = kind(Format::$name);
            const LARGEST: i16 = $largest;
            const UNIT: usize = SUPER;
            const SIZE: usize = quant_bytes(Format::$name);
            const UNIT_BYTES: usize = unit_bytes(Format::$name);
            const FETCH: bool = true;
            const SIMPLE: bool = false;
            type Bytes = $bytes;
            type Numbers = $numbers;
            type Held = Unpacked<PART>;
            const NOTHING: Unpacked<PART> = Unpacked([[[0.0; PART]; 2]; SUPER]);

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> ($bytes, $bytes) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn enter(scales: *const u8, part: usize, held: &mut Unpacked<PART>) {
                // SAFETY: the caller says so.
                unsafe { $enter(scales, part, held) }
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn scales(held: &Unpacked<PART>, block: usize) -> ($numbers, $numbers) {
                let [first, second] = &held.0[block];
                // SAFETY: both are whole.
                unsafe { (load_numbers(first.as_ptr()), load_numbers(second.as_ptr())) }
            }
        }
    };
}
pub(super) use k_quantised;

/// Makes readers of all formats out of what the module has for its registers:
///
/// - `load(at)` and `store(at, bytes)` of bytes, `load_numbers(at)` and `store_numbers(at, numbers)`, all aligned;
/// - `nibbles(bytes)`: their lower and their upper halves;
/// - `bits(bytes, by, mask)`: shifted to the left, or to the right where `by` is negative, and masked;
/// - `or(bytes, bytes)`, `zero()`;
/// - `halves(at)` and `bf16(at)`: as many numbers of two bytes;
/// - `enter6(scales, part, unpacked)` and `enter8`: which unpack the scales of eight blocks, in six or eight bits each.
macro_rules! readers {
    ($features:literal, bytes: $bytes:ty, numbers: $numbers:ty, rows: $rows:expr) => {
        /// Rows of a part.
        const PART: usize = $rows;
        /// Parts of a tile.
        const PARTS: usize = ROWS / PART;
        /// What a part has of each line, in bytes.
        const PART_LINE: usize = LINE / PARTS;

        /// Four bits: groups `i` and `i + 4` share a line.
        ///
        /// # Safety
        /// As for [`Quantised::pair`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn pair4(quants: *const u8, i: usize) -> ($bytes, $bytes) {
            // SAFETY: the caller says so.
            nibbles(unsafe { load(quants.add(i * LINE)) })
        }

        /// Five bits: a fifth line has the highest.
        ///
        /// # Safety
        /// As for [`Quantised::pair`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn pair5(quants: *const u8, i: usize) -> ($bytes, $bytes) {
            // SAFETY: the caller says so.
            let ((low, high), fifth) = unsafe { (pair4(quants, i), load(quants.add(4 * LINE))) };
            let by = i as i32;
            (or(low, bits(fifth, 4 - by, 16)), or(high, bits(fifth, -by, 16)))
        }

        /// Six bits: two more lines have the highest two, one for each half of the groups.
        ///
        /// # Safety
        /// As for [`Quantised::pair`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn pair6(quants: *const u8, i: usize) -> ($bytes, $bytes) {
            // SAFETY: the caller says so.
            let ((low, high), first, second) =
                unsafe { (pair4(quants, i), load(quants.add(4 * LINE)), load(quants.add(5 * LINE))) };
            let by = 4 - 2 * i as i32;
            (or(low, bits(first, by, 0x30)), or(high, bits(second, by, 0x30)))
        }

        /// Eight bits.
        ///
        /// # Safety
        /// As for [`Quantised::pair`].
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn pair8(quants: *const u8, i: usize) -> ($bytes, $bytes) {
            // SAFETY: the caller says so.
            unsafe { (load(quants.add(i * LINE)), load(quants.add((i + 4) * LINE))) }
        }

        /// Scales alone.
        ///
        /// # Safety
        /// The unit's scales are at `scales`.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn scale(scales: *const u8, block: usize) -> ($numbers, $numbers) {
            // SAFETY: the caller says so.
            (unsafe { halves(scales.add(block * 2 * ROWS)) }, zero())
        }

        /// Scales and minima.
        ///
        /// # Safety
        /// The unit's scales are at `scales`.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn scale_and_minimum(scales: *const u8, block: usize) -> ($numbers, $numbers) {
            // SAFETY: the caller says so.
            unsafe {
                let at = scales.add(block * 4 * ROWS);
                (halves(at), halves(at.add(2 * ROWS)))
            }
        }

        quantised!($features, $bytes, $numbers, Q4_0, 15, pair4, scale);
        quantised!($features, $bytes, $numbers, Q4_1, 15, pair4, scale_and_minimum);
        quantised!($features, $bytes, $numbers, Q5_0, 31, pair5, scale);
        quantised!($features, $bytes, $numbers, Q5_1, 31, pair5, scale_and_minimum);
        quantised!($features, $bytes, $numbers, Q8_0, 255, pair8, scale);
        k_quantised!($features, $bytes, $numbers, Q4K, 15, pair4, enter6);
        k_quantised!($features, $bytes, $numbers, Q5K, 31, pair5, enter6);
        k_quantised!($features, $bytes, $numbers, Q6K, 63, pair6, enter8);

        /// A tile that was unpacked to memory: for each block, bytes in whole lines, then scales in single precision.
        struct Memory<F>(PhantomData<F>);

        impl<F: Reader> Quantised for Memory<F> {
            const KIND: Kind = F::KIND;
            const LARGEST: i16 = F::LARGEST;
            const UNIT: usize = 1;
            const SIZE: usize = 8 * LINE;
            const UNIT_BYTES: usize = MEMORY_LINES * LINE;
            const FETCH: bool = false;
            const SIMPLE: bool = true;
            type Bytes = $bytes;
            type Numbers = $numbers;
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> ($bytes, $bytes) {
                // SAFETY: the caller says so.
                unsafe { pair8(quants, i) }
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn enter(scales: *const u8, part: usize, held: &mut *const u8) {
                // SAFETY: all parts' scales are there.
                *held = unsafe { scales.add(part * PART_LINE) };
            }

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn scales(held: &*const u8, _block: usize) -> ($numbers, $numbers) {
                let at = held.cast::<f32>();
                // SAFETY: the caller says so; there are two lines for each block.
                unsafe { (load_numbers(at), load_numbers(at.add(ROWS))) }
            }
        }

        /// Unpacks a tile to memory.
        ///
        /// # Safety
        /// There is a packed tile of so many blocks, and room for [`MEMORY_LINES`] for each.
        #[target_feature(enable = $features)]
        unsafe fn unpack<F: Reader>(tile: *const u8, to: *mut u8, blocks: usize) {
            for part in 0..PARTS {
                let mut held = F::NOTHING;
                for block in 0..blocks {
                    // SAFETY: the caller says so.
                    unsafe {
                        let unit = tile.add(block / F::UNIT * F::UNIT_BYTES);
                        if block % F::UNIT == 0 {
                            F::enter(unit.add(F::UNIT * F::SIZE), part, &mut held);
                        }
                        let from = unit.add(block % F::UNIT * F::SIZE + part * PART_LINE);
                        let to = to.add(block * MEMORY_LINES * LINE + part * PART_LINE);
                        for i in 0..4 {
                            let (low, high) = F::pair(from, i);
                            store(to.add(i * LINE), low);
                            store(to.add((i + 4) * LINE), high);
                        }
                        let (first, second) = F::scales(&held, block % F::UNIT);
                        store_numbers(to.add(8 * LINE).cast::<f32>(), first);
                        store_numbers(to.add(9 * LINE).cast::<f32>(), second);
                    }
                }
            }
        }

        /// A reader for the module's registers.
        trait Reader: Quantised<Bytes = $bytes, Numbers = $numbers> {}

        impl<F: Quantised<Bytes = $bytes, Numbers = $numbers>> Reader for F {}

        struct F32;
        struct F16;
        struct Bf16;

        impl Floats for F32 {
            const SIZE: usize = 4;
            type Numbers = $numbers;

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn load(at: *const u8) -> $numbers {
                // SAFETY: the caller says so.
                unsafe { load_numbers(at.cast::<f32>()) }
            }
        }

        impl Floats for F16 {
            const SIZE: usize = 2;
            type Numbers = $numbers;

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn load(at: *const u8) -> $numbers {
                // SAFETY: the caller says so.
                unsafe { halves(at) }
            }
        }

        impl Floats for Bf16 {
            const SIZE: usize = 2;
            type Numbers = $numbers;

            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn load(at: *const u8) -> $numbers {
                // SAFETY: the caller says so.
                unsafe { bf16(at) }
            }
        }
    };
}
pub(super) use readers;

/// Makes `floats`, which multiplies tiles of floating point numbers with up to the largest of `$n` rows at once, and
/// `store_products`. Besides what [`readers`] takes, the module has `multiply_add(weights, value, sum)` and
/// `store_some(to, numbers, n)`, which stores the first n.
macro_rules! float_kernels {
    ($features:literal, numbers: $numbers:ty, rows at once: $($n:literal)*) => {
        /// Stores the products of a part of a tile with some rows of a group.
        #[target_feature(enable = $features)]
        #[inline]
        fn store_products(work: &Work<'_>, tile: usize, part: usize, group: usize, from: usize, sums: &[$numbers]) {
            for (row, sums) in sums.iter().enumerate() {
                let (to, n) = work.output(tile, group, from + row);
                let n = n.saturating_sub(part * PART).min(PART);
                if n > 0 {
                    // SAFETY: `output` gives room for the tile's rows, which only this task writes; `n` of them are the
                    // part's.
                    unsafe { store_some(to.add(part * PART), *sums, n) };
                }
            }
        }

        /// Multiplies tiles of floating point numbers with all groups.
        ///
        /// # Safety
        /// The processor has the instructions, and the groups hold as many values as the layout says.
        #[target_feature(enable = $features)]
        unsafe fn floats<F: Floats<Numbers = $numbers>>(work: &Work<'_>) {
            let blocks = work.section.layout.blocks();
            for tile in work.tiles.clone() {
                let weights = work.tile(tile).as_ptr();
                for (index, group) in work.groups.iter().enumerate() {
                    for from in (0..group.rows).step_by(ROWS_AT_ONCE) {
                        match (group.rows - from).min(ROWS_AT_ONCE) {
                            $(
                                $n => {
                                    // SAFETY: the caller says that the group is whole, the tile is, and there are so many
                                    // rows from that one on.
                                    let sums = unsafe {
                                        let rows = group.floats.as_ptr().add(from * BLOCK);
                                        float_dots::<F, $n>(weights, rows, group.rows, blocks)
                                    };
                                    for (part, sums) in sums.iter().enumerate() {
                                        store_products(work, tile, part, index, from, sums);
                                    }
                                }
                            )*
                            _ => {}
                        }
                    }
                }
            }
        }

        /// Multiplies a tile of floating point numbers with `N` of `n` rows.
        ///
        /// # Safety
        /// The tile and the rows have so many blocks, and there are `N` rows in each of `n`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn float_dots<F: Floats<Numbers = $numbers>, const N: usize>(
            weights: *const u8,
            rows: *const f32,
            n: usize,
            blocks: usize,
        ) -> [[$numbers; N]; PARTS] {
            let mut sums = [[zero(); N]; PARTS];
            for block in 0..blocks {
                for k in 0..BLOCK {
                    // SAFETY: the caller says that there are so many blocks of `n` rows.
                    unsafe {
                        let from = weights.add((block * BLOCK + k) * ROWS * F::SIZE);
                        fetch(from.wrapping_add(AHEAD), LINE);
                        for (part, sums) in sums.iter_mut().enumerate() {
                            let weights = F::load(from.add(part * PART * F::SIZE));
                            for (j, sum) in sums.iter_mut().enumerate() {
                                *sum = multiply_add(weights, *rows.add((block * n + j) * BLOCK + k), *sum);
                            }
                        }
                    }
                }
            }
            sums
        }
    };
}
pub(super) use float_kernels;

/// How far ahead weights are fetched, in bytes.
pub(super) const AHEAD: usize = 8192;

/// Asks for so many bytes to come to the second-level cache.
#[inline]
pub(super) fn fetch(at: *const u8, bytes: usize) {
    for line in 0..bytes / LINE {
        let at = at.wrapping_add(line * LINE);
        // SAFETY: fetching is allowed at any address, and has no effect but on the caches.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(at.cast::<i8>());
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags));
        }
    }
}
