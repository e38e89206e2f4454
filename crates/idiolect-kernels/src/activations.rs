//! The right-hand side of a product: rows of activations, made ready for it.

use crate::Team;
use crate::encode::{Encoded, encode_blocks};
use crate::format::BLOCK;
use crate::matrix::Matrix;

/// Rows that lie together; the most that a kernel works on at once.
pub(crate) const GROUP: usize = 8;

/// How much greater than the mean of the row the square of a block's scale is where the block stands out.
const OUTLYING: f32 = 6.0;

/// What activations are encoded as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forms {
    /// Bytes with scales.
    bytes: bool,
    /// Bytes a second time, for what the first left over where blocks stand out.
    rests: bool,
    /// Numbers in single precision.
    floats: bool,
}

/// A batch of activation rows, encoded for products with matrices.
///
/// Each 32 values of a row become signed bytes with one scale. For matrices of floating point numbers
/// the values are kept as they are.
///
/// A value that is no finite number makes every product of its row something that is no finite number.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    n: usize,
    cols: usize,
    groups: Vec<Group>,
    forms: Forms,
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
    /// The blocks that come twice, in order. What rounding took from them follows the last block, as blocks of its own.
    pub(crate) again: Vec<u32>,
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
        self.fill(team, values, cols, Forms { bytes: true, ..Forms::default() });
    }

    /// Encodes rows for products with this one matrix, be it quantised or not, replacing what was held.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows as wide as the matrix.
    pub fn encode_for(&mut self, matrix: &Matrix, team: &Team, values: &[f32]) {
        self.fill_for(matrix, team, values, false);
    }

    /// Encodes rows as [`encode_for`](Self::encode_for) does, and those blocks a second time that stand out.
    ///
    /// What comes out of a normalisation often has a few values that are many times the others, always in the same
    /// columns. The rounding of the blocks around them then does more harm than that of all others together. Encoding
    /// what it took away, too, makes a product take as much longer as there are such blocks: most often one in eighteen.
    ///
    /// # Panics
    /// As `encode_for` does.
    pub fn encode_finely_for(&mut self, matrix: &Matrix, team: &Team, values: &[f32]) {
        self.fill_for(matrix, team, values, true);
    }

    fn fill_for(&mut self, matrix: &Matrix, team: &Team, values: &[f32], rests: bool) {
        let forms = Forms { bytes: matrix.has_quantised(), rests, floats: matrix.has_floats() };
        self.fill(team, values, matrix.cols(), forms);
    }

    fn fill(&mut self, team: &Team, values: &[f32], cols: usize, forms: Forms) {
        assert!(cols > 0 && cols.is_multiple_of(BLOCK), "rows have a multiple of 32 values, not {cols}");
        assert!(values.len().is_multiple_of(cols), "{} values are no rows of {cols}", values.len());
        (self.n, self.cols, self.forms) = (values.len() / cols, cols, forms);
        self.groups.resize_with(self.n.div_ceil(GROUP), Group::default);
        team.chunks_mut(&mut self.groups, 1, |index, group| {
            let rows = &values[index * GROUP * cols..];
            let rows = &rows[..rows.len().min(GROUP * cols)];
            for group in group {
                group.fill(rows, cols, forms);
            }
        });
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Says whether the rows are there in the form that the matrix takes.
    pub(crate) fn suits(&self, matrix: &Matrix) -> bool {
        self.cols == matrix.cols()
            && (self.forms.bytes || !matrix.has_quantised())
            && (self.forms.floats || !matrix.has_floats())
    }
}

impl Group {
    fn fill(&mut self, values: &[f32], cols: usize, forms: Forms) {
        self.rows = values.len() / cols;
        let blocks = values.len() / BLOCK;
        if forms.floats {
            self.floats.resize(values.len(), 0.0);
            for (row, values) in values.chunks_exact(cols).enumerate() {
                for (block, values) in values.chunks_exact(BLOCK).enumerate() {
                    self.floats[(block * self.rows + row) * BLOCK..][..BLOCK].copy_from_slice(values);
                }
            }
        }
        if forms.bytes {
            self.resize(blocks);
            self.quantise(values, cols);
            self.again.clear();
            if forms.rests {
                self.refine(values, cols);
            }
        }
    }

    /// Makes room for so many blocks, of all rows together.
    fn resize(&mut self, blocks: usize) {
        self.quants.resize(blocks * BLOCK, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0.0);
        self.starts.iter_mut().for_each(|starts| starts.resize(blocks, 0));
        self.halves.resize(blocks, [0; 2]);
    }

    fn quantise(&mut self, values: &[f32], cols: usize) {
        let rows = self.rows;
        for (row, values) in values.chunks_exact(cols).enumerate() {
            self.put(row, rows, values.as_chunks::<BLOCK>().0);
        }
    }

    /// Encodes blocks to where `first` is and every `step`th place after it.
    fn put(&mut self, first: usize, step: usize, blocks: &[[f32; BLOCK]]) {
        let quants = self.quants.as_chunks_mut::<BLOCK>().0;
        let [of_8, of_16, of_128] = self.starts.each_mut().map(Vec::as_mut_slice);
        encode_blocks(blocks, &mut quants[first..], step, |at, Encoded { scale, halves }| {
            let (at, sum) = (first + at, halves[0] + halves[1]);
            self.scales[at] = scale;
            self.sums[at] = scale * sum as f32;
            (of_8[at], of_16[at], of_128[at]) = (-8 * sum, -16 * sum, -128 * sum);
            self.halves[at] = halves.map(|half| -32 * half);
        });
    }

    /// Encodes once more what rounding took from blocks that stand out.
    ///
    /// Which those are depends on nothing but the row. Where one row of the group has such a block and another has not,
    /// the other's is nothing but zeros, and changes no product.
    fn refine(&mut self, values: &[f32], cols: usize) {
        let (rows, blocks) = (self.rows, cols / BLOCK);
        let mut limits = [0.0; GROUP];
        for scales in self.scales.chunks_exact(rows) {
            for (limit, scale) in limits.iter_mut().zip(scales) {
                *limit += scale * scale;
            }
        }
        limits.iter_mut().for_each(|limit| *limit *= OUTLYING / blocks as f32);
        let outlying = |scale: &f32, limit: &f32| scale * scale > *limit;
        for (block, scales) in (0..).zip(self.scales.chunks_exact(rows)) {
            if scales.iter().zip(&limits).any(|(scale, limit)| outlying(scale, limit)) {
                self.again.push(block);
            }
        }
        self.resize((blocks + self.again.len()) * rows);
        for index in 0..self.again.len() {
            let block = self.again[index] as usize;
            for (row, limit) in limits.iter().enumerate().take(rows) {
                let at = block * rows + row;
                let scale = self.scales[at];
                let mut rest = [0.0; BLOCK];
                if outlying(&scale, limit) {
                    let values = &values[row * cols + block * BLOCK..][..BLOCK];
                    let quants = &self.quants[at * BLOCK..][..BLOCK];
                    for ((rest, value), quant) in rest.iter_mut().zip(values).zip(quants) {
                        *rest = value - f32::from(*quant) * scale;
                    }
                }
                self.put((blocks + index) * rows + row, 1, &[rest]);
            }
        }
    }
}
