//! Matrices of weights, packed for products.

use std::fmt;
use std::io;

use crate::Team;
use crate::activations::Activations;
use crate::bytes::Bytes;
use crate::format::{BLOCK, Format};
use crate::product;
use crate::tier::Tier;
use crate::tile::{Layout, ROWS};

/// Why a matrix cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Rows of this length cannot be held.
    #[error("rows of {cols} values cannot be packed from {format}, which takes a multiple of {multiple}")]
    Cols {
        /// The length of the rows.
        cols: usize,
        /// The format that they are in.
        format: Format,
        /// What the length must be a multiple of.
        multiple: usize,
    },
    /// There are more or fewer bytes than the shape and the format take.
    #[error("a matrix of {rows} x {cols} has {got} bytes, expected {expected}")]
    Size {
        /// Rows of the whole matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The bytes that were given.
        got: usize,
        /// The bytes that its parts take.
        expected: usize,
    },
    /// The matrix does not fit the memory.
    #[error("no memory for a matrix of {rows} x {cols}")]
    Memory {
        /// Rows of the whole matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// This processor lacks the instructions.
    #[error("this processor cannot run {0}")]
    Tier(Tier),
}

/// A matrix of weights, packed for products with [`Activations`].
///
/// It may be made of several parts, one below the other, each in its own format, such as the queries, keys and values of
/// an attention layer: one product then does for all.
///
/// ```
/// use idiolect_kernels::{Activations, Format, Matrix, Team, Tier};
///
/// let team = Team::new(2)?;
/// // Two rows of 32 values.
/// let weights: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
/// let matrix = Matrix::pack(Format::F32, 2, 32, &weights, Tier::detect())?;
/// let mut activations = Activations::default();
/// activations.encode_for(&matrix, &team, &[1.0; 32]);
/// let mut product = [0.0; 2];
/// matrix.multiply(&team, &activations, &mut product);
/// assert_eq!(product, [496.0, 1520.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Matrix {
    rows: usize,
    cols: usize,
    tier: Tier,
    sections: Vec<Section>,
    tiles: usize,
    data: Bytes,
    finite: bool,
}

/// Rows of one format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    /// The first row in the whole matrix.
    pub(crate) first_row: usize,
    /// The first tile in the whole matrix.
    pub(crate) first_tile: usize,
    /// Where the first tile is.
    pub(crate) start: usize,
}

impl Section {
    pub(crate) const fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} x {}", self.rows, self.cols)?;
        for section in &self.sections {
            write!(f, ", {} {}", section.rows, section.layout.format)?;
        }
        write!(f, ", {})", self.tier)
    }
}

impl Matrix {
    /// Packs the rows of a file: `bytes` holds them one after the other.
    ///
    /// # Errors
    /// When the columns do not suit the format, the bytes do not suit the shape, the memory does not suffice or this
    /// processor lacks the tier.
    pub fn pack(format: Format, rows: usize, cols: usize, bytes: &[u8], tier: Tier) -> Result<Self, PackError> {
        Self::pack_parts(cols, &[(rows, format, bytes)], tier)
    }

    /// Packs parts, each with its rows, format and bytes, one below the other.
    ///
    /// # Errors
    /// As for [`pack`](Self::pack).
    pub fn pack_parts(cols: usize, parts: &[(usize, Format, &[u8])], tier: Tier) -> Result<Self, PackError> {
        let shapes: Vec<_> = parts.iter().map(|(rows, format, _)| (*rows, *format)).collect();
        let mut packer = Packer::new(cols, &shapes, tier)?;
        for ((rows, format, bytes), (_, _)) in parts.iter().zip(&shapes) {
            let expected = rows * format.row_bytes(cols);
            if bytes.len() != expected {
                return Err(PackError::Size { rows: *rows, cols, got: bytes.len(), expected });
            }
            packer.push(bytes);
        }
        packer.finish()
    }

    /// Returns the number of rows, which is the length of a product.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns, which is the length of an activation row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the bytes of memory that the weights take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    /// Returns the instructions that products are made with.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// Says whether every scale, or every floating point number, is finite.
    #[must_use]
    pub const fn is_finite(&self) -> bool {
        self.finite
    }

    /// Returns the same weights for another tier, which the tests know how to run.
    #[cfg(test)]
    pub(crate) fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// Says whether any part is quantised.
    pub(crate) fn has_quantised(&self) -> bool {
        self.sections.iter().any(|section| section.layout.format.is_quantised())
    }

    /// Says whether any part is of floating point numbers.
    pub(crate) fn has_floats(&self) -> bool {
        self.sections.iter().any(|section| !section.layout.format.is_quantised())
    }

    /// Decodes one row.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as a row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "length of a row");
        let section = self.sections.iter().rev().find(|section| section.first_row <= row);
        let section = section.expect("the first section begins at row 0");
        let row = row - section.first_row;
        let size = section.layout.tile_bytes();
        let tile = &self.data.as_slice()[section.start + row / ROWS * size..][..size];
        section.layout.decode_row(tile, row % ROWS, out);
    }

    /// Multiplies every activation row with every weight row: `out[j * rows + r] = self[r] · activations[j]`.
    ///
    /// Neither what else is in the batch nor the number of threads changes any result.
    ///
    /// # Panics
    /// When the activations were not encoded for such a matrix, or `out` has not the size of the product.
    pub fn multiply(&self, team: &Team, activations: &Activations, out: &mut [f32]) {
        assert!(activations.suits(self), "activations are encoded for {self:?}");
        assert_eq!(out.len(), activations.n() * self.rows, "size of the product");
        product::multiply(self, team, activations, out);
    }

    pub(crate) fn sections(&self) -> &[Section] {
        &self.sections
    }

    pub(crate) const fn tiles(&self) -> usize {
        self.tiles
    }

    pub(crate) fn data(&self) -> &[u8] {
        self.data.as_slice()
    }
}

/// Packs a matrix from the bytes of a file piece by piece, so that they need not all be in memory as well.
///
/// The bytes of the parts follow each other, in pieces of any length: a packer is an [`io::Write`].
///
/// ```
/// use std::io::{Read, Write};
/// use idiolect_kernels::{Format, Packer, Tier};
///
/// let file = [0u8; 64 * 20];
/// let mut packer = Packer::new(64, &[(32, Format::Q4_1)], Tier::detect())?;
/// std::io::copy(&mut file.as_slice(), &mut packer)?;
/// assert_eq!(packer.finish()?.rows(), 32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Packer {
    matrix: Matrix,
    /// Bytes of the tile that is not yet complete.
    pending: Vec<u8>,
    section: usize,
    /// Tiles of the section that are packed.
    packed: usize,
    expected: usize,
    got: usize,
}

impl Packer {
    /// Begins a matrix of parts with these rows and formats, one below the other.
    ///
    /// # Errors
    /// When the columns do not suit a format, the memory does not suffice or this processor lacks the tier.
    pub fn new(cols: usize, parts: &[(usize, Format)], tier: Tier) -> Result<Self, PackError> {
        if !tier.is_available() {
            return Err(PackError::Tier(tier));
        }
        let rows = parts.iter().fold(0usize, |sum, (rows, _)| sum.saturating_add(*rows));
        let memory = || PackError::Memory { rows, cols };
        let mut sections = Vec::new();
        let (mut first_row, mut first_tile, mut start, mut expected) = (0, 0, 0usize, 0usize);
        for (rows, format) in parts.iter().copied() {
            let multiple = format.block_len().max(BLOCK);
            if cols == 0 || !cols.is_multiple_of(multiple) {
                return Err(PackError::Cols { cols, format, multiple });
            }
            // No format takes more than four bytes, and no tile more than a line besides.
            let most = cols.checked_mul(rows.checked_add(ROWS).ok_or_else(memory)?).and_then(|n| n.checked_mul(8));
            most.and_then(|most| most.checked_add(start)).ok_or_else(memory)?;
            if rows == 0 {
                continue;
            }
            let section = Section { layout: Layout { format, cols }, rows, first_row, first_tile, start };
            first_row += rows;
            first_tile += section.tiles();
            start += section.tiles() * section.layout.tile_bytes();
            expected += rows * format.row_bytes(cols);
            sections.push(section);
        }
        let data = Bytes::zeros(start).ok_or_else(memory)?;
        let matrix = Matrix { rows, cols, tier, sections, tiles: first_tile, data, finite: true };
        Ok(Self { matrix, pending: Vec::new(), section: 0, packed: 0, expected, got: 0 })
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.got = self.got.saturating_add(bytes.len());
        while let Some(section) = self.matrix.sections.get(self.section).copied() {
            let rows = (section.rows - self.packed * ROWS).min(ROWS);
            let size = rows * section.layout.format.row_bytes(section.layout.cols);
            let missing = size - self.pending.len();
            if bytes.len() < missing {
                self.pending.extend_from_slice(bytes);
                return;
            }
            let (now, later) = bytes.split_at(missing);
            bytes = later;
            let tile = section.layout.tile_bytes();
            let tile = &mut self.matrix.data.as_mut_slice()[section.start + self.packed * tile..][..tile];
            let finite = if self.pending.is_empty() {
                section.layout.pack(now, tile)
            } else {
                self.pending.extend_from_slice(now);
                section.layout.pack(&self.pending, tile)
            };
            self.pending.clear();
            self.matrix.finite &= finite;
            self.packed += 1;
            if self.packed == section.tiles() {
                (self.section, self.packed) = (self.section + 1, 0);
            }
        }
    }

    /// Returns the matrix.
    ///
    /// # Errors
    /// When there were more or fewer bytes than its parts take.
    pub fn finish(self) -> Result<Matrix, PackError> {
        let Matrix { rows, cols, .. } = self.matrix;
        if self.got == self.expected {
            Ok(self.matrix)
        } else {
            Err(PackError::Size { rows, cols, got: self.got, expected: self.expected })
        }
    }
}

impl io::Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in which every scale is a small number.
    fn bytes(format: Format, rows: usize, cols: usize) -> Vec<u8> {
        (0..rows * format.row_bytes(cols)).map(|i| (i * 7 % 60) as u8).collect()
    }

    #[test]
    fn pieces_of_any_length_make_the_same_matrix() {
        let cols = 256;
        for format in Format::ALL {
            let parts = [bytes(format, 37, cols), bytes(Format::Q8_0, 5, cols)];
            let borrowed = [(37, format, parts[0].as_slice()), (5, Format::Q8_0, parts[1].as_slice())];
            let whole = Matrix::pack_parts(cols, &borrowed, Tier::Portable).unwrap();
            for piece in [1, 33, 1000, 100_000] {
                let mut packer = Packer::new(cols, &[(37, format), (5, Format::Q8_0)], Tier::Portable).unwrap();
                for bytes in parts.concat().chunks(piece) {
                    packer.push(bytes);
                }
                assert_eq!(packer.finish().unwrap().data(), whole.data(), "{format} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_matrix_takes_hardly_more_than_its_file() {
        for format in Format::ALL {
            let bytes = bytes(format, 64, 512);
            let matrix = Matrix::pack(format, 64, 512, &bytes, Tier::Portable).unwrap();
            assert!(matrix.n_bytes() <= bytes.len() + bytes.len() / 64, "{format}: {} bytes", matrix.n_bytes());
        }
    }

    #[test]
    fn rows_are_decoded_where_they_are() {
        let cols = 64;
        let value = |row: usize, col: usize| (row * 100 + col) as f32;
        let part = |rows: std::ops::Range<usize>| -> Vec<u8> {
            let bytes_of = |row: usize| (0..cols).flat_map(move |col| value(row, col).to_le_bytes());
            rows.flat_map(bytes_of).collect()
        };
        let (first, second) = (part(0..19), part(19..40));
        let parts = [(19, Format::F32, first.as_slice()), (21, Format::F32, second.as_slice())];
        let matrix = Matrix::pack_parts(cols, &parts, Tier::Portable).unwrap();
        let mut out = vec![0.0; cols];
        for row in 0..40 {
            matrix.decode_row(row, &mut out);
            assert!((0..cols).all(|col| out[col] == value(row, col)), "row {row}");
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused_with_the_reason() {
        let refused = |format: Format, rows: usize, cols: usize, n: usize| {
            Matrix::pack(format, rows, cols, &vec![0; n], Tier::Portable).unwrap_err().to_string()
        };
        assert!(refused(Format::Q4_0, 2, 48, 54).contains("48 values"));
        assert!(refused(Format::Q4K, 2, 96, 54).contains("multiple of 256"));
        assert!(refused(Format::F32, 2, 0, 0).contains("multiple of 32"));
        assert!(refused(Format::Q8_0, 2, 64, 135).contains("135 bytes, expected 136"));
        assert!(refused(Format::Q8_0, usize::MAX / 2, 1 << 20, 0).contains("no memory"));
        assert!(refused(Format::Q8_0, 1 << 40, 1 << 20, 0).contains("no memory"));
        let mut packer = Packer::new(32, &[(1, Format::Q8_0)], Tier::Portable).unwrap();
        packer.push(&[0; 33]);
        assert!(matches!(packer.finish(), Err(PackError::Size { got: 33, expected: 34, .. })));
        let mut packer = Packer::new(32, &[(1, Format::Q8_0)], Tier::Portable).unwrap();
        packer.push(&[0; 35]);
        assert!(packer.finish().is_err());
        let foreign = if cfg!(target_arch = "aarch64") { Tier::Avx2 } else { Tier::NeonDot };
        assert_eq!(Matrix::pack(Format::Q8_0, 1, 32, &[0; 34], foreign).unwrap_err(), PackError::Tier(foreign));
    }

    #[test]
    fn scales_that_are_no_numbers_show() {
        let infinity = half::f16::INFINITY.to_le_bytes();
        for (format, places) in [
            (Format::Q4_0, &[0][..]),
            (Format::Q4_1, &[0, 2]),
            (Format::Q5_0, &[0]),
            (Format::Q5_1, &[0, 2]),
            (Format::Q8_0, &[0]),
            (Format::Q4K, &[0, 2]),
            (Format::Q5K, &[0, 2]),
            (Format::Q6K, &[208]),
            (Format::F16, &[0, 6]),
        ] {
            let good = bytes(format, 3, 256);
            assert!(Matrix::pack(format, 3, 256, &good, Tier::Portable).unwrap().is_finite(), "{format}");
            for place in places {
                let mut bad = good.clone();
                let at = 2 * format.row_bytes(256) + place;
                bad[at..at + 2].copy_from_slice(&infinity);
                assert!(
                    !Matrix::pack(format, 3, 256, &bad, Tier::Portable).unwrap().is_finite(),
                    "{format} at {place}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_a_matrix_too() {
        let matrix = Matrix::pack(Format::Q8_0, 0, 32, &[], Tier::detect()).unwrap();
        let team = Team::new(1).unwrap();
        let mut activations = Activations::default();
        activations.encode(&team, &[1.0; 32], 32);
        matrix.multiply(&team, &activations, &mut []);
        let matrix = Matrix::pack(Format::Q8_0, 1, 32, &[0; 34], Tier::detect()).unwrap();
        activations.encode(&team, &[], 32);
        matrix.multiply(&team, &activations, &mut []);
    }
}
