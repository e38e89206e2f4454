//! The right-hand side of a product: rows of activations, made ready for it.

use crate::Team;
use crate::encode::{Encoded, encode_blocks};
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
        if quantised {
            self.quants.resize(values.len(), 0);
            self.scales.resize(blocks, 0.0);
            self.sums.resize(blocks, 0.0);
            self.starts.iter_mut().for_each(|starts| starts.resize(blocks, 0));
            self.halves.resize(blocks, [0; 2]);
            self.quantise(values, cols);
        }
    }

    fn quantise(&mut self, values: &[f32], cols: usize) {
        let rows = self.rows;
        let quants = self.quants.as_chunks_mut::<BLOCK>().0;
        let [of_8, of_16, of_128] = self.starts.each_mut().map(Vec::as_mut_slice);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            let blocks = values.as_chunks::<BLOCK>().0;
            encode_blocks(blocks, &mut quants[row..], rows, |at, Encoded { scale, halves }| {
                let (at, sum) = (at + row, halves[0] + halves[1]);
                self.scales[at] = scale;
                self.sums[at] = scale * sum as f32;
                (of_8[at], of_16[at], of_128[at]) = (-8 * sum, -16 * sum, -128 * sum);
                self.halves[at] = halves.map(|half| -32 * half);
            });
        }
    }
}
