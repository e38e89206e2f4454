//! How sixteen rows of weights lie in memory.
//!
//! A tile holds [`ROWS`] rows, block after block of [`BLOCK`] columns. What a block keeps in bytes is stored as groups of
//! four columns: a group has the four bytes of row 0, then those of row 1, and so on, which is what byte dot products
//! take. A block has eight groups; where values have four bits, group `i` and group `i + 4` share bytes, the former in
//! the low halves. Fifth bits follow in one byte for each row and place in a group, bit `g` for group `g`; fifth and
//! sixth bits follow in two such stretches, one for each half of the groups. After one, two or eight blocks, a unit, come
//! their scales, each kind for sixteen rows side by side: so a product reads a tile from end to end. A tile takes as many
//! bytes as its rows take in a file, but for what completes the last unit and, with Q6_K, half a cache line a unit.
//!
//! Floating point formats keep, column after column, the sixteen numbers of the rows.

use std::ops::Range;

use crate::format::{BLOCK, Format, SUPER, bfloat_at, half_at, scale_and_min, single_at};

/// Rows in a tile.
pub(crate) const ROWS: usize = 16;

/// Bytes in a cache line, where tiles and blocks begin.
pub(crate) const LINE: usize = 64;

/// Where the parts of a tile are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) cols: usize,
}

/// Bytes that a block of a quantised format takes in a tile, without its scales.
pub(crate) const fn quant_bytes(format: Format) -> usize {
    match format {
        Format::Q4_0 | Format::Q4_1 | Format::Q4K => 256,
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => 256 + 64,
        Format::Q6K => 256 + 128,
        Format::Q8_0 => 512,
        Format::F32 | Format::F16 | Format::Bf16 => BLOCK * ROWS * format.block_bytes(),
    }
}

/// Bytes that the scales of a block take in a tile, or those of eight blocks for K-quants.
pub(crate) const fn scale_bytes(format: Format) -> usize {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => 2 * ROWS,
        Format::Q4_1 | Format::Q5_1 => 4 * ROWS,
        Format::Q4K | Format::Q5K => (12 + 4) * ROWS,
        Format::Q6K => (16 + 2) * ROWS,
        Format::F32 | Format::F16 | Format::Bf16 => 0,
    }
}

/// Blocks whose scales follow them together, so that all begin at cache lines.
pub(crate) const fn unit_blocks(format: Format) -> usize {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => 2,
        Format::Q4K | Format::Q5K | Format::Q6K => SUPER,
        Format::Q4_1 | Format::Q5_1 | Format::F32 | Format::F16 | Format::Bf16 => 1,
    }
}

/// Bytes that a unit takes in a tile.
pub(crate) const fn unit_bytes(format: Format) -> usize {
    let blocks = unit_blocks(format);
    let scales = match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => 2 * scale_bytes(format),
        _ => scale_bytes(format),
    };
    (blocks * quant_bytes(format) + scales).next_multiple_of(LINE)
}

impl Layout {
    pub(crate) const fn blocks(self) -> usize {
        self.cols / BLOCK
    }

    pub(crate) const fn tile_bytes(self) -> usize {
        self.blocks().div_ceil(unit_blocks(self.format)) * unit_bytes(self.format)
    }

    /// Returns where the quants of a block are.
    const fn quants_at(self, block: usize) -> Range<usize> {
        let blocks = unit_blocks(self.format);
        let start = block / blocks * unit_bytes(self.format) + block % blocks * quant_bytes(self.format);
        start..start + quant_bytes(self.format)
    }

    /// Returns where the scales of a block are, or those of all blocks of a K-quant's unit.
    const fn scales_at(self, block: usize) -> Range<usize> {
        let blocks = unit_blocks(self.format);
        let size = scale_bytes(self.format);
        let start = block / blocks * unit_bytes(self.format) + blocks * quant_bytes(self.format);
        let start = if blocks == SUPER { start } else { start + block % blocks * size };
        start..start + size
    }

    /// Packs up to sixteen rows of a file; says whether all scales, or all floating point numbers, are finite.
    pub(crate) fn pack(self, rows: &[u8], tile: &mut [u8]) -> bool {
        let Self { format, cols } = self;
        let mut finite = true;
        match format {
            Format::F32 => return put_floats::<4>(rows, cols, tile, 0x7f80_0000),
            Format::F16 => return put_floats::<2>(rows, cols, tile, 0x7c00),
            Format::Bf16 => return put_floats::<2>(rows, cols, tile, 0x7f80),
            _ => {}
        }
        for (row, blocks) in rows.chunks_exact(format.row_bytes(cols)).enumerate() {
            let parts = format.block_len() / BLOCK;
            for (index, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
                for part in 0..parts {
                    let packed = &mut tile[self.quants_at(index * parts + part)];
                    match format {
                        // Groups that share bytes do so in files, too.
                        Format::Q4_0 => put_groups(&block[2..], 0, row, packed),
                        Format::Q4_1 => put_groups(&block[4..], 0, row, packed),
                        Format::Q8_0 => put_groups(&block[2..], 0x8080_8080, row, packed),
                        _ => put_quants(&quants_of_file(format, block, part), row, packed),
                    }
                }
                finite &= put_scales(format, block, row, &mut tile[self.scales_at(index * parts)]);
            }
        }
        finite
    }

    /// Unpacks the weights of one block.
    pub(crate) fn unpack(self, tile: &[u8], block: usize, into: &mut Block) {
        get_quants(self.format, &tile[self.quants_at(block)], &mut into.quants);
        self.scales(tile, block, into);
    }

    /// Unpacks the scales of one block.
    fn scales(self, tile: &[u8], block: usize, into: &mut Block) {
        let Self { format, .. } = self;
        let bytes = &tile[self.scales_at(block)];
        for row in 0..ROWS {
            let (scale, second) = match format {
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => (half_at(bytes, 2 * row), 0.0),
                Format::Q4_1 | Format::Q5_1 => (half_at(bytes, 2 * row), half_at(bytes, 2 * ROWS + 2 * row)),
                Format::Q4K | Format::Q5K => {
                    let (scale, min) = scale_and_min(&std::array::from_fn(|i| bytes[i * ROWS + row]), block % SUPER);
                    let halves = 12 * ROWS + 2 * row;
                    (half_at(bytes, halves) * f32::from(scale), -(half_at(bytes, halves + 2 * ROWS) * f32::from(min)))
                }
                Format::Q6K => {
                    let of = |part: usize| f32::from(bytes[part * ROWS + row].cast_signed());
                    let scale = half_at(bytes, 16 * ROWS + 2 * row);
                    let part = block % SUPER * 2;
                    (scale * of(part), scale * of(part + 1))
                }
                Format::F32 | Format::F16 | Format::Bf16 => (1.0, 0.0),
            };
            into.scales[row] = scale;
            into.seconds[row] = second;
        }
    }

    /// Returns one column of a tile of floating point numbers.
    #[inline]
    pub(crate) fn column(self, tile: &[u8], col: usize) -> [f32; ROWS] {
        let size = self.format.block_bytes();
        let column = &tile[col * ROWS * size..][..ROWS * size];
        std::array::from_fn(|row| float_at(self.format, column, row * size))
    }

    /// Decodes one row of a tile.
    pub(crate) fn decode_row(self, tile: &[u8], row: usize, out: &mut [f32]) {
        if !self.format.is_quantised() {
            let size = self.format.block_bytes();
            for (col, out) in out.iter_mut().enumerate() {
                *out = float_at(self.format, tile, (col * ROWS + row) * size);
            }
            return;
        }
        let mut block = Block::default();
        let offset = offset(self.format);
        for (index, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            self.unpack(tile, index, &mut block);
            for (col, out) in out.iter_mut().enumerate() {
                let quant = f32::from(i16::from(block.quants[place(row, col)]) - offset);
                *out = match kind(self.format) {
                    Kind::Halves if col >= BLOCK / 2 => quant * block.seconds[row],
                    Kind::Minimum => quant.mul_add(block.scales[row], block.seconds[row]),
                    Kind::Halves | Kind::Offset => quant * block.scales[row],
                };
            }
        }
    }
}

/// How the numbers of a block follow from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `scale · (byte - offset)`.
    Offset,
    /// `scale · byte + second`.
    Minimum,
    /// `scale · (byte - offset)` in the first half of the columns, `second · (byte - offset)` in the other.
    Halves,
}

/// Returns the kind of a quantised format.
pub(crate) const fn kind(format: Format) -> Kind {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => Kind::Minimum,
        Format::Q6K => Kind::Halves,
        _ => Kind::Offset,
    }
}

/// Returns what to subtract from the bytes of a format.
pub(crate) const fn offset(format: Format) -> i16 {
    match format {
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Q6K => 32,
        Format::Q8_0 => 128,
        _ => 0,
    }
}

/// A block of sixteen rows, unpacked.
pub(crate) struct Block {
    /// Eight groups of four columns; in each the four bytes of row 0, then of row 1 and so on.
    pub(crate) quants: [u8; BLOCK * ROWS],
    pub(crate) scales: [f32; ROWS],
    /// Minima, or the scales of the second half.
    pub(crate) seconds: [f32; ROWS],
}

impl Default for Block {
    fn default() -> Self {
        Self { quants: [0; BLOCK * ROWS], scales: [0.0; ROWS], seconds: [0.0; ROWS] }
    }
}

/// Returns the index of an element in a block of bytes.
const fn place(row: usize, col: usize) -> usize {
    (col / 4 * ROWS + row) * 4 + col % 4
}

/// Reads a number of one of the floating point formats.
#[inline]
fn float_at(format: Format, bytes: &[u8], at: usize) -> f32 {
    match format {
        Format::F16 => half_at(bytes, at),
        Format::Bf16 => bfloat_at(bytes, at),
        _ => single_at(bytes, at),
    }
}

/// Reads the unsigned bytes of one part of a file's block.
fn quants_of_file(format: Format, block: &[u8], part: usize) -> [u8; BLOCK] {
    let nibbles = |bytes: &[u8], i: usize| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
    match format {
        Format::Q5_0 | Format::Q5_1 => {
            let at = if format == Format::Q5_0 { 2 } else { 4 };
            let (bits, block) = block[at..at + 20].split_at(4);
            std::array::from_fn(|i| nibbles(block, i) | ((bits[i / 8] >> (i % 8) & 1) << 4))
        }
        Format::Q4K | Format::Q5K => {
            let at = if format == Format::Q4K { 16 } else { 48 };
            let block_nibbles = &block[at + part / 2 * 32..][..32];
            let bits = &block[16..48];
            std::array::from_fn(|i| {
                let low = block_nibbles[i] >> (part % 2 * 4) & 15;
                if format == Format::Q4K { low } else { low | ((bits[i] >> part & 1) << 4) }
            })
        }
        Format::Q6K => {
            let (half, quarter) = (part / 4, part % 4);
            let low = &block[half * 64 + quarter % 2 * 32..][..32];
            let high = &block[128 + half * 32..][..32];
            std::array::from_fn(|i| (low[i] >> (quarter / 2 * 4) & 15) | ((high[i] >> (2 * quarter) & 3) << 4))
        }
        // These are not taken apart.
        Format::Q4_0 | Format::Q4_1 | Format::Q8_0 | Format::F32 | Format::F16 | Format::Bf16 => [0; BLOCK],
    }
}

/// Writes rows of floating point numbers into a tile; says whether none has all bits of `exponent`.
fn put_floats<const SIZE: usize>(rows: &[u8], cols: usize, tile: &mut [u8], exponent: u32) -> bool {
    let mut finite = true;
    for (row, values) in rows.chunks_exact(SIZE * cols).enumerate() {
        let values = values.as_chunks::<SIZE>().0;
        for (column, value) in tile.chunks_exact_mut(ROWS * SIZE).zip(values) {
            column.as_chunks_mut::<SIZE>().0[row] = *value;
        }
        finite &= values.iter().all(|value| {
            let mut bits = [0; 4];
            bits[..SIZE].copy_from_slice(value);
            u32::from_le_bytes(bits) & exponent != exponent
        });
    }
    finite
}

/// Writes the bytes of one row into a packed block that has them in the same groups of four, with some bits flipped.
fn put_groups(bytes: &[u8], flip: u32, row: usize, packed: &mut [u8]) {
    for (line, four) in packed.as_chunks_mut::<LINE>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
        line.as_chunks_mut::<4>().0[row] = (u32::from_le_bytes(*four) ^ flip).to_le_bytes();
    }
}

/// Writes the bytes of one row into a packed block.
fn put_quants(quants: &[u8; BLOCK], row: usize, packed: &mut [u8]) {
    let (low, high) = packed.split_at_mut(256);
    for (i, (a, b)) in quants[..16].iter().zip(&quants[16..]).enumerate() {
        low[place(row, i)] = (a & 15) | (b << 4);
    }
    match high.len() {
        64 => {
            for (k, byte) in high[row * 4..row * 4 + 4].iter_mut().enumerate() {
                *byte = (0..8).fold(0, |bits, group| bits | ((quants[group * 4 + k] >> 4 & 1) << group));
            }
        }
        128 => {
            for (half, bytes) in high.chunks_exact_mut(64).enumerate() {
                for (k, byte) in bytes[row * 4..row * 4 + 4].iter_mut().enumerate() {
                    let pair = |group: usize| (quants[half * 16 + group * 4 + k] >> 4) << (2 * group);
                    *byte = (0..4).fold(0, |bits, group| bits | pair(group));
                }
            }
        }
        _ => {}
    }
}

/// Reads all bytes of a packed block.
fn get_quants(format: Format, packed: &[u8], quants: &mut [u8; BLOCK * ROWS]) {
    if !format.is_quantised() {
        return;
    }
    if format == Format::Q8_0 {
        quants.copy_from_slice(packed);
        return;
    }
    let (low, high) = packed.split_at(256);
    let (first, second) = quants.split_at_mut(256);
    for ((first, second), byte) in first.iter_mut().zip(second).zip(low) {
        (*first, *second) = (byte & 15, byte >> 4);
    }
    match high.len() {
        64 => {
            for (group, quants) in quants.chunks_exact_mut(64).enumerate() {
                for (quant, bits) in quants.iter_mut().zip(high) {
                    *quant |= (bits >> group & 1) << 4;
                }
            }
        }
        128 => {
            for (group, quants) in quants.chunks_exact_mut(64).enumerate() {
                for (quant, bits) in quants.iter_mut().zip(&high[group / 4 * 64..]) {
                    *quant |= (bits >> (group % 4 * 2) & 3) << 4;
                }
            }
        }
        _ => {}
    }
}

/// Writes the scales of one row; says whether they are finite.
fn put_scales(format: Format, block: &[u8], row: usize, scales: &mut [u8]) -> bool {
    let mut finite = true;
    let mut put = |from: usize, to: usize| {
        scales[to..to + 2].copy_from_slice(&block[from..from + 2]);
        finite &= half_at(block, from).is_finite();
    };
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => put(0, 2 * row),
        Format::Q4_1 | Format::Q5_1 => {
            put(0, 2 * row);
            put(2, 2 * ROWS + 2 * row);
        }
        Format::Q4K | Format::Q5K => {
            put(0, 12 * ROWS + 2 * row);
            put(2, 14 * ROWS + 2 * row);
            for (i, byte) in block[4..16].iter().enumerate() {
                scales[i * ROWS + row] = *byte;
            }
        }
        Format::Q6K => {
            put(208, 16 * ROWS + 2 * row);
            for (i, byte) in block[192..208].iter().enumerate() {
                scales[i * ROWS + row] = *byte;
            }
        }
        Format::F32 | Format::F16 | Format::Bf16 => {}
    }
    finite
}
