//! Products of activations with packed weights.

#![expect(unsafe_code, reason = "tasks write to different rows and columns of one matrix; weights lie in raw bytes")]
#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]

use std::alloc::{Layout, handle_alloc_error};

use super::lanes::{Lanes, Tile, Width, Work, dispatch, gelu, panel};
use super::rows::{Rows, Source, Target};
use crate::Team;
use crate::bytes::Bytes;

/// Activations that are worked on together, in values: with a panel of weights, what a core's second cache holds.
const CHUNK: usize = 1 << 17;

/// What is done with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It becomes the result.
    Store,
    /// It is added to what was there.
    Add,
    /// Its exact GELU, by the error function, becomes the result.
    Gelu,
}

/// A linear layer with `f32` weights, laid out for products: `y = W x + b`.
///
/// ```
/// use idiolect_kernels::{Epilogue, PackedF32, Rows, Team};
///
/// let team = Team::new(1)?;
/// let layer = PackedF32::pack(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0.5, 0.0]);
/// let (mut input, mut output) = (Rows::new(3), Rows::new(2));
/// input.reset(1);
/// output.reset(1);
/// input.row_mut(0).copy_from_slice(&[1.0, 0.0, -1.0]);
/// layer.multiply(&team, &input, &mut output, Epilogue::Store);
/// assert_eq!(output.row(0), [-1.5, -2.0]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PackedF32 {
    /// Length of a product.
    rows: usize,
    /// Length of an input.
    cols: usize,
    /// Panel after panel of rows, in each for every column the rows' weights side by side; zeros where rows are missing.
    panels: Bytes,
    /// Padded like the panels.
    bias: Vec<f32>,
    width: Width,
}

impl std::fmt::Debug for PackedF32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedF32({} x {})", self.rows, self.cols)
    }
}

impl PackedF32 {
    /// Packs `rows` rows of `cols` weights each. An empty bias stands for zeros.
    ///
    /// # Panics
    /// When a slice is of another length.
    #[must_use]
    pub fn pack(rows: usize, cols: usize, weights: &[f32], bias: &[f32]) -> Self {
        Self::pack_for(Width::detect(), rows, cols, weights, bias)
    }

    pub(super) fn pack_for(width: Width, rows: usize, cols: usize, weights: &[f32], bias: &[f32]) -> Self {
        assert_eq!(Some(weights.len()), rows.checked_mul(cols), "number of weights");
        assert!(bias.is_empty() || bias.len() == rows, "{} biases for {rows} rows", bias.len());
        let panel = width.panel();
        let padded = rows.next_multiple_of(panel);
        let size = padded.saturating_mul(cols).saturating_mul(size_of::<f32>());
        let mut panels = Bytes::zeros(size).unwrap_or_else(|| handle_alloc_error(Layout::new::<Self>()));
        // SAFETY: every bit pattern is a value, and the bytes begin where a cache line does.
        let values =
            unsafe { std::slice::from_raw_parts_mut(panels.as_mut_slice().as_mut_ptr().cast(), padded * cols) };
        for first in (0..rows).step_by(panel) {
            let lanes = panel.min(rows - first);
            for column in 0..cols {
                let begin = first * cols + column * panel;
                for lane in 0..lanes {
                    values[begin + lane] = weights[(first + lane) * cols + column];
                }
            }
        }
        let mut bias = bias.to_vec();
        bias.resize(padded, 0.0);
        Self { rows, cols, panels, bias, width }
    }

    /// Returns the number of rows, which is the length of a product.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns, which is the length of an input.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Multiplies each row of the input.
    ///
    /// # Panics
    /// When sizes do not match.
    pub fn multiply(&self, team: &Team, input: &Rows, out: &mut Rows, epilogue: Epilogue) {
        assert_eq!(input.width(), self.cols, "width of the input");
        assert_eq!((out.n(), out.width()), (input.n(), self.rows), "size of the product");
        let n = input.n();
        if n == 0 || self.rows == 0 {
            return;
        }
        let grid = Grid::new(n, self.cols, self.bias.len() / self.width.panel(), self.width.rows(), team.threads());
        let (input, input_stride) = (Source(input.as_ptr()), input.stride());
        let (out_stride, out) = (out.stride(), out.target());
        team.run(grid.tasks(), &|task| {
            let product =
                Product { layer: self, input, input_stride, out, out_stride, epilogue, part: grid.part(task) };
            // SAFETY: the width was detected (or is lesser). The matrices have the sizes that were checked above; rows
            // of `Rows` have room for whole panels; and no two tasks have a row and a panel in common.
            unsafe { dispatch(self.width, product) };
        });
    }
}

/// How a product is cut into tasks.
struct Grid {
    n: usize,
    chunks: usize,
    panels: usize,
    groups: usize,
}

/// Some rows and some panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    rows: (usize, usize),
    panels: (usize, usize),
}

/// Returns where part `i` of `parts` begins when `n` is cut evenly.
const fn cut(n: usize, parts: usize, i: usize) -> usize {
    n * i / parts
}

impl Grid {
    fn new(n: usize, cols: usize, panels: usize, tile_rows: usize, threads: usize) -> Self {
        let chunk = (CHUNK / cols.max(1) / tile_rows).max(1) * tile_rows;
        let chunks = n.div_ceil(chunk);
        // A few tasks a thread, so that none waits long for the last one.
        let groups = if threads == 1 { 1 } else { (3 * threads).div_ceil(chunks).min(panels) };
        Self { n, chunks, panels, groups }
    }

    const fn tasks(&self) -> usize {
        self.chunks * self.groups
    }

    const fn part(&self, task: usize) -> Part {
        let (chunk, group) = (task / self.groups, task % self.groups);
        Part {
            rows: (cut(self.n, self.chunks, chunk), cut(self.n, self.chunks, chunk + 1)),
            panels: (cut(self.panels, self.groups, group), cut(self.panels, self.groups, group + 1)),
        }
    }
}

/// A part of a product.
struct Product<'a> {
    layer: &'a PackedF32,
    input: Source,
    input_stride: usize,
    out: Target,
    out_stride: usize,
    epilogue: Epilogue,
    part: Part,
}

impl Work for Product<'_> {
    /// # Safety
    /// The addresses must be those of matrices that have the rows and panels of the part.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Self { layer, input, input_stride, out, out_stride, epilogue, part } = self;
        let (first, end) = part.rows;
        let blocks = (end - first).div_ceil(V::ROWS);
        let weights = layer.panels.as_slice().as_ptr().cast::<f32>();
        for p in part.panels.0..part.panels.1 {
            let column = p * panel::<V>();
            for block in 0..blocks {
                let row = first + cut(end - first, blocks, block);
                let rows = first + cut(end - first, blocks, block + 1) - row;
                let mut buffer = [0f32; 12 * super::lanes::MAX_PANEL];
                let target = out.at(row * out_stride + column);
                let direct = epilogue != Epilogue::Add;
                let tile = Tile {
                    a: input.at(row * input_stride),
                    a_stride: input_stride,
                    b: weights.wrapping_add(column * layer.cols),
                    b_stride: panel::<V>(),
                    k: layer.cols,
                    out: if direct { target } else { buffer.as_mut_ptr() },
                    out_stride: if direct { out_stride } else { panel::<V>() },
                };
                // SAFETY: rows and panel are parts of the matrices, which the caller says are there; the buffer has room
                // for a tile; biases are padded to whole panels.
                unsafe {
                    V::tile(rows, &tile);
                    let bias = layer.bias.as_ptr().add(column);
                    for r in 0..rows {
                        for c in [0, V::LANES] {
                            let at = target.wrapping_add(r * out_stride + c);
                            let sum = V::load(tile.out.wrapping_add(r * tile.out_stride + c)).add(V::load(bias.add(c)));
                            match epilogue {
                                Epilogue::Store => sum.store(at),
                                Epilogue::Add => V::load(at).add(sum).store(at),
                                Epilogue::Gelu => gelu(sum).store(at),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (n, cols, panels, rows, threads) in
            [(1, 384, 12, 12, 1), (30, 384, 36, 12, 2), (1000, 1536, 12, 6, 3), (7, 3072, 1, 4, 8), (513, 1, 5, 12, 2)]
        {
            let grid = Grid::new(n, cols, panels, rows, threads);
            let mut seen = vec![0; n * panels];
            for part in (0..grid.tasks()).map(|task| grid.part(task)) {
                assert!(part.rows.0 < part.rows.1 && part.panels.0 < part.panels.1, "{part:?}");
                for row in part.rows.0..part.rows.1 {
                    (part.panels.0..part.panels.1).for_each(|panel| seen[row * panels + panel] += 1);
                }
            }
            assert!(seen.iter().all(|times| *times == 1));
        }
    }
}
