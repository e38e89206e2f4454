//! The right-hand side of a product: rows of activations, made ready for it.

use crate::Team;
use crate::format::BLOCK;
use crate::matrix::Matrix;

/// Rows that lie together; the most that a kernel works on at once.
pub(crate) const GROUP: usize = 8;

/// A batch of activation rows, encoded for products with matrices.
///
/// Each 32 values of a row become signed bytes with one scale, which is as exact as the weights of any quantised format
/// deserve. For matrices of floating point numbers the values are kept as they are.
///
/// A value that is no finite number makes every product of its row something that is no finite number.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    n: usize,
    cols: usize,
    groups: Vec<Group>,
    quantised: bool,
    floats: bool,
}

/// Up to [`GROUP`] rows. In every vector the values of a block stand together, row after row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) rows: usize,
    pub(crate) quants: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    /// The sum of a block times its scale.
    pub(crate) sums: Vec<f32>,
    /// What dot products with unsigned weights begin at: minus the sum of the bytes times 8, 16 and 128.
    pub(crate) starts: [Vec<i32>; 3],
    /// Minus 32 times the sum of each half of a block.
    pub(crate) halves: Vec<[i32; 2]>,
    pub(crate) floats: Vec<f32>,
}

impl Activations {
    /// Returns the number of rows.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Returns the length of the rows.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Encodes rows of `cols` values for products with any quantised matrix, replacing what was held.
    ///
    /// # Panics
    /// When `cols` is no positive multiple of 32, or `values` not a whole number of rows.
    pub fn encode(&mut self, team: &Team, values: &[f32], cols: usize) {
        self.fill(team, values, cols, true, false);
    }

    /// Encodes rows for products with this one matrix, be it quantised or not, replacing what was held.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows as wide as the matrix.
    pub fn encode_for(&mut self, matrix: &Matrix, team: &Team, values: &[f32]) {
        self.fill(team, values, matrix.cols(), matrix.has_quantised(), matrix.has_floats());
    }

    fn fill(&mut self, team: &Team, values: &[f32], cols: usize, quantised: bool, floats: bool) {
        assert!(cols > 0 && cols.is_multiple_of(BLOCK), "rows have a multiple of 32 values, not {cols}");
        assert!(values.len().is_multiple_of(cols), "{} values are no rows of {cols}", values.len());
        (self.n, self.cols, self.quantised, self.floats) = (values.len() / cols, cols, quantised, floats);
        self.groups.resize_with(self.n.div_ceil(GROUP), Group::default);
        team.chunks_mut(&mut self.groups, 1, |index, group| {
            let rows = &values[index * GROUP * cols..];
            let rows = &rows[..rows.len().min(GROUP * cols)];
            for group in group {
                group.fill(rows, cols, quantised, floats);
            }
        });
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Says whether the rows are there in the form that the matrix takes.
    pub(crate) fn suits(&self, matrix: &Matrix) -> bool {
        self.cols == matrix.cols()
            && (self.quantised || !matrix.has_quantised())
            && (self.floats || !matrix.has_floats())
    }
}

impl Group {
    fn fill(&mut self, values: &[f32], cols: usize, quantised: bool, floats: bool) {
        self.rows = values.len() / cols;
        let blocks = values.len() / BLOCK;
        if floats {
            self.floats.resize(values.len(), 0.0);
            for (row, values) in values.chunks_exact(cols).enumerate() {
                for (block, values) in values.chunks_exact(BLOCK).enumerate() {
                    self.floats[(block * self.rows + row) * BLOCK..][..BLOCK].copy_from_slice(values);
                }
            }
        }
        if !quantised {
            return;
        }
        self.quants.resize(values.len(), 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0.0);
        self.starts.iter_mut().for_each(|starts| starts.resize(blocks, 0));
        self.halves.resize(blocks, [0; 2]);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                let at = block * self.rows + row;
                let (quants, scale) = encode_block(values);
                self.quants[at * BLOCK..][..BLOCK].copy_from_slice(&quants);
                let sum = |quants: &[i8]| quants.iter().map(|q| i32::from(*q)).sum::<i32>();
                let halves = [sum(&quants[..BLOCK / 2]), sum(&quants[BLOCK / 2..])];
                let sum = halves[0] + halves[1];
                self.scales[at] = scale;
                #[expect(clippy::cast_precision_loss, reason = "at most 32 · 127")]
                let sum_f32 = sum as f32;
                self.sums[at] = scale * sum_f32;
                for (starts, offset) in self.starts.iter_mut().zip([8, 16, 128]) {
                    starts[at] = -offset * sum;
                }
                self.halves[at] = halves.map(|half| -32 * half);
            }
        }
    }
}

/// Encodes one block; its scale is no finite number when any of its values is none.
#[inline]
fn encode_block(values: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    // Magnitudes compare like their bits, and then infinity and NaN are the greatest instead of getting lost.
    let largest = values.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).cast_signed().max(largest));
    let largest = f32::from_bits(largest.cast_unsigned());
    // For the smallest subnormal numbers the inverse would be infinite.
    let inverse = if largest > 1e-35 { 127.0 / largest } else { 0.0 };
    (values.map(|value| round_to_i8(value * inverse)), largest / 127.0)
}

/// Rounds a value of at most 2²² in magnitude to the nearest integer and returns its low byte.
#[inline]
fn round_to_i8(value: f32) -> i8 {
    // Adding 1.5 · 2²³ leaves the integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
    let low = (value + MAGIC).to_bits() as u8;
    low.cast_signed()
}
