//! Dot products of a few vectors with many.

#![expect(unsafe_code, reason = "vectors of the processor's width are read through addresses")]
#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]
#![expect(clippy::needless_range_loop, reason = "indices name queries and rows in several places at once")]

use super::lanes::{Lanes, Width, Work, dispatch, prefetch};

/// Values of rows that all queries are done with before the next rows: half of a small second-level cache.
const BLOCK: usize = 32 * 1024;

/// Values in a cache line.
const LINE: usize = 16;

/// Rows from which on queries are copied.
const WORTH_A_COPY: usize = 64;

/// Most queries that are done together.
const QUERIES: usize = 4;

/// Most rows that are done together.
const ROWS: usize = 4;

/// Writes the dot product of query `q` with row `r` to `out[q · rows + r]`, for as many queries and rows of `width` values
/// as the slices hold.
///
/// Rows are read from memory once, whatever the number of queries: four queries take hardly longer than one where memory
/// is what limits, and each further four add what computing them takes. A product does not depend on what else is computed
/// with it. Between processors with different instruction sets its last bits differ.
///
/// # Panics
/// When a slice is not a whole number of vectors, or `out` has another size than queries times rows.
pub fn dot_products(queries: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    dot_products_with(Width::detect(), queries, rows, width, out);
}

/// Returns the dot product of two vectors: the same bits as [`dot_products`]. Of vectors of different sizes, what is beyond
/// the shorter one is left out.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let mut out = [0.0];
    if n > 0 {
        dot_products(&a[..n], &b[..n], n, &mut out);
    }
    out[0]
}

pub(super) fn dot_products_with(lanes: Width, queries: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    let count = |values: &[f32], what: &str| {
        let count = values.len().checked_div(width).unwrap_or(0);
        assert_eq!(count * width, values.len(), "values of {what} in vectors of {width}");
        count
    };
    let (n_queries, n_rows) = (count(queries, "queries"), count(rows, "rows"));
    assert_eq!(out.len(), n_queries * n_rows, "products of {n_queries} queries with {n_rows} rows");
    // Queries are read again and again: a copy that begins with a cache line spares reading two lines for each vector.
    let mut copy = Vec::new();
    let queries = if n_rows < WORTH_A_COPY {
        queries
    } else {
        copy.resize(queries.len() + LINE, 0.0);
        let skipped = copy.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let copy = &mut copy[skipped..][..queries.len()];
        copy.copy_from_slice(queries);
        copy
    };
    // SAFETY: the width was detected (or is lesser); sizes are as asserted.
    unsafe { dispatch(lanes, Dots { queries, rows, width, n_rows, out }) };
}

struct Dots<'a> {
    queries: &'a [f32],
    rows: &'a [f32],
    width: usize,
    n_rows: usize,
    out: &'a mut [f32],
}

impl Work for Dots<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Self { queries, rows, width, n_rows, out } = self;
        if out.is_empty() {
            return;
        }
        let n_queries = queries.len() / width;
        let block = (BLOCK / width).next_multiple_of(ROWS).max(ROWS);
        for first in (0..n_rows).step_by(block) {
            let end = n_rows.min(first + block);
            let mut q = 0;
            while q < n_queries {
                let together = if n_queries - q >= QUERIES { QUERIES } else { (n_queries - q).min(2) };
                let queries = &queries[q * width..(q + together) * width];
                let out = &mut out[q * n_rows..(q + together) * n_rows];
                let part = Part { queries, rows, width, n_rows, out, first, end, fetch: q == 0 };
                // SAFETY: the caller's promise; the slices hold as many vectors as the part says.
                unsafe {
                    match (together, V::LANES) {
                        (4, 16) => part.run::<V, 4, 2>(),
                        (4, _) => part.run::<V, 4, 2>(),
                        (2, _) => part.run::<V, 2, ROWS>(),
                        _ => part.run::<V, 1, ROWS>(),
                    }
                }
                q += together;
            }
        }
    }
}

/// Some queries with the rows of a block.
struct Part<'a> {
    queries: &'a [f32],
    rows: &'a [f32],
    width: usize,
    n_rows: usize,
    out: &'a mut [f32],
    first: usize,
    end: usize,
    /// Whether these are the first to read the rows.
    fetch: bool,
}

impl Part<'_> {
    /// # Safety
    /// The processor must have the instructions of `V`, and there must be `Q` queries.
    #[inline(always)]
    unsafe fn run<V: Lanes, const Q: usize, const R: usize>(self) {
        let mut row = self.first;
        while row + R <= self.end {
            let next = self.rows.as_ptr().wrapping_add((row + R) * self.width);
            let rows = &self.rows[row * self.width..(row + R) * self.width];
            // SAFETY: the caller's promise; `rows` are R rows.
            let sums = unsafe { tile::<V, Q, R>(self.queries, rows, self.width, self.fetch.then_some(next)) };
            for (q, sums) in sums.iter().enumerate() {
                self.out[q * self.n_rows + row..][..R].copy_from_slice(sums);
            }
            row += R;
        }
        for row in row..self.end {
            let one = &self.rows[row * self.width..(row + 1) * self.width];
            // SAFETY: the caller's promise; `one` is one row.
            let sums = unsafe { tile::<V, Q, 1>(self.queries, one, self.width, None) };
            for (q, [sum]) in sums.into_iter().enumerate() {
                self.out[q * self.n_rows + row] = sum;
            }
        }
    }
}

/// Returns the products of `Q` queries with `R` rows, fetching as many bytes from `next` on.
///
/// # Safety
/// The processor must have the instructions of `V`; there must be `Q` queries and `R` rows of `width` values.
#[inline(always)]
unsafe fn tile<V: Lanes, const Q: usize, const R: usize>(
    queries: &[f32],
    rows: &[f32],
    width: usize,
    next: Option<*const f32>,
) -> [[f32; R]; Q] {
    debug_assert!(queries.len() == Q * width && rows.len() == R * width, "sizes of a tile");
    let whole = width - width % V::LANES;
    let (query, row) = (queries.as_ptr(), rows.as_ptr());
    let mut out = [[0.0; R]; Q];
    // Plain loops throughout: what a closure is handed to is not compiled for the wider instructions.
    // SAFETY: whole vectors below `whole` are inside each row and each query, and so are the values from there on.
    unsafe {
        let mut sums = [[V::splat(0.0); R]; Q];
        let mut i = 0;
        while i < whole {
            let mut values = [V::splat(0.0); R];
            for r in 0..R {
                values[r] = V::load(row.add(r * width + i));
            }
            if let Some(next) = next
                && i % LINE == 0
            {
                // In the order of memory, whatever the order in which the values are used.
                for r in 0..R {
                    prefetch(next.wrapping_add(R * i + r * LINE));
                }
            }
            for q in 0..Q {
                let factor = V::load(query.add(q * width + i));
                for r in 0..R {
                    sums[q][r] = factor.mul_add(values[r], sums[q][r]);
                }
            }
            i += V::LANES;
        }
        for q in 0..Q {
            for r in 0..R {
                out[q][r] = sums[q][r].sum();
            }
        }
        for i in whole..width {
            for q in 0..Q {
                for r in 0..R {
                    out[q][r] += *query.add(q * width + i) * *row.add(r * width + i);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i + 1000 * seed) as f32 * 0.618_034).fract() - 0.5).collect()
    }

    fn products(lanes: Width, queries: &[f32], rows: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; (queries.len() / width) * (rows.len() / width)];
        dot_products_with(lanes, queries, rows, width, &mut out);
        out
    }

    #[test]
    fn all_widths_equal_plain_sums() {
        for lanes in Width::runnable() {
            for width in [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 48, 63, 100, 384, 768] {
                for (n_queries, n_rows) in
                    [(1, 1), (1, 7), (1, 8), (1, 19), (2, 9), (3, 5), (4, 13), (5, 4), (7, 6), (9, 33)]
                {
                    let (queries, rows) = (numbers(1, n_queries * width), numbers(2, n_rows * width));
                    let out = products(lanes, &queries, &rows, width);
                    for (at, found) in out.iter().enumerate() {
                        let query = &queries[at / n_rows * width..][..width];
                        let row = &rows[at % n_rows * width..][..width];
                        let plain: f64 = query.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                        let difference = (f64::from(*found) - plain).abs();
                        assert!(
                            difference < 1e-6 * width as f64,
                            "{lanes:?} {width} {n_queries} {n_rows}: {difference}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_does_not_depend_on_the_others() {
        for lanes in Width::runnable() {
            for width in [5, 37, 768] {
                let (queries, rows) = (numbers(3, 7 * width), numbers(4, 150 * width));
                let together = products(lanes, &queries, &rows, width);
                for (q, query) in queries.chunks(width).enumerate() {
                    for (r, row) in rows.chunks(width).enumerate() {
                        let alone = products(lanes, query, row, width);
                        assert_eq!(alone[0].to_bits(), together[q * 150 + r].to_bits(), "{lanes:?} {width} {q} {r}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_own_products() {
        for lanes in Width::runnable() {
            let mut rows = vec![1.0; 20 * 19];
            rows[3 * 19 + 18] = f32::NAN;
            rows[5 * 19] = f32::INFINITY;
            let out = products(lanes, &[1.0; 4 * 19], &rows, 19);
            for (at, found) in out.iter().enumerate() {
                match at % 20 {
                    3 => assert!(found.is_nan()),
                    5 => assert_eq!(*found, f32::INFINITY),
                    _ => assert_eq!(*found, 19.0),
                }
            }
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        dot_products(&[], &[], 0, &mut []);
        dot_products(&[], &[1.0, 2.0], 2, &mut []);
        dot_products(&[1.0, 2.0], &[], 2, &mut []);
        assert_eq!(dot(&[], &[]), 0.0);
        assert_eq!(dot(&[2.0, 3.0], &[5.0]), 10.0);
    }

    #[test]
    #[should_panic(expected = "values of rows in vectors of 2")]
    fn half_a_row_is_refused() {
        dot_products(&[1.0, 2.0], &[1.0], 2, &mut []);
    }
}
