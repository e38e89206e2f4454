//! Matrices of activations.

#![expect(unsafe_code, reason = "cache lines of sixteen values are seen as values, and threads write apart")]

/// Values of a cache line.
pub(super) const LINE: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; LINE]);

impl Line {
    pub(super) const ZERO: Self = Self([0.0; LINE]);
}

/// A matrix of `f32`, row after row, each beginning on a cache line.
///
/// Rows are an odd number of lines apart, so that equal columns of neighbouring rows do not compete for the same places
/// in the caches. Memory once taken is kept for later use.
///
/// ```
/// let mut rows = idiolect_kernels::Rows::new(3);
/// rows.reset(2);
/// rows.row_mut(1).copy_from_slice(&[1.0, 2.0, 3.0]);
/// assert_eq!(rows.row(1), [1.0, 2.0, 3.0]);
/// ```
pub struct Rows {
    lines: Vec<Line>,
    n: usize,
    width: usize,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({} x {})", self.n, self.width)
    }
}

impl Rows {
    /// Makes a matrix without rows.
    #[must_use]
    pub const fn new(width: usize) -> Self {
        Self { lines: Vec::new(), n: 0, width }
    }

    /// Sets the number of rows. What they then hold is not specified.
    pub fn reset(&mut self, n: usize) {
        self.n = n;
        let lines = n * self.lines_per_row();
        if self.lines.len() < lines {
            // What was there is not wanted: no need to move it.
            self.lines.clear();
            self.lines.resize(lines, Line::ZERO);
        }
    }

    /// Gives memory back that more than `n` rows take.
    pub fn shrink_to(&mut self, n: usize) {
        let lines = n * self.lines_per_row();
        if self.lines.len() > lines {
            self.n = self.n.min(n);
            self.lines.truncate(lines);
            self.lines.shrink_to_fit();
        }
    }

    /// Returns the number of rows.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Returns the number of values in a row.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Returns row `i`.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.n, "row {i} of {}", self.n);
        let per_row = self.lines_per_row();
        let lines = &self.lines[i * per_row..(i + 1) * per_row];
        // SAFETY: a line is sixteen values without padding, and a row's lines have room for `width` values.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.width) }
    }

    /// Returns row `i` to be written.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.n, "row {i} of {}", self.n);
        let per_row = self.lines_per_row();
        let lines = &mut self.lines[i * per_row..(i + 1) * per_row];
        // SAFETY: as in `row`.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), self.width) }
    }

    /// Returns the values from one row's begin to the next one's: at least `width` rounded up to a whole
    /// [`MAX_PANEL`](super::lanes::MAX_PANEL).
    pub(super) const fn stride(&self) -> usize {
        self.lines_per_row() * LINE
    }

    pub(super) const fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    /// Returns the first value for threads that write to different rows or columns.
    pub(super) const fn target(&mut self) -> Target {
        Target(self.lines.as_mut_ptr().cast())
    }

    const fn lines_per_row(&self) -> usize {
        self.width.next_multiple_of(super::lanes::MAX_PANEL) / LINE + 1
    }
}

/// The first value of a matrix that several threads write to, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Target(*mut f32);

// SAFETY: it only carries the address; who follows it says why that is sound.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// Returns the same matrix without its first `i` values.
    pub(super) const fn shifted(self, i: usize) -> Self {
        Self(self.at(i))
    }

    /// Returns the address of value `i`.
    pub(super) const fn at(self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// The first value of something that several threads read.
#[derive(Clone, Copy)]
pub(super) struct Source(pub(super) *const f32);

// SAFETY: it only carries the address; who follows it says why that is sound.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// Returns the same matrix without its first `i` values.
    pub(super) const fn shifted(self, i: usize) -> Self {
        Self(self.at(i))
    }

    /// Returns the address of value `i`.
    pub(super) const fn at(self, i: usize) -> *const f32 {
        self.0.wrapping_add(i)
    }
}
