//! Products of a few vectors of bytes with many.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vectors of the processor's width are read through addresses"),
    expect(clippy::needless_range_loop, reason = "indices name queries and rows in several places at once")
)]

use crate::Tier;

/// Sixty-four bytes, signed or not, that begin with a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ByteLine<T>(pub [T; LINE]);

/// Bytes of a line.
const LINE: usize = 64;

/// Rows that are done together.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 4;

/// Lines of rows that all queries are done with before the next rows: a quarter of a small second-level cache.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 1024;

/// Most lines of a vector: sums of more products might not fit 32 bits.
const MOST_LINES: usize = 1024;

/// Writes the product of query `q` with row `r` to `out[q · rows + r]`, for as many queries and rows of `lines` lines as the
/// slices hold. Rows are read from memory once, whatever the number of queries.
///
/// Products are exact, so they are the same on all processors.
///
/// # Panics
/// When a slice is not a whole number of vectors, `out` has another size than queries times rows, or vectors have more than
/// 1024 lines, that is, 65,536 bytes.
pub fn byte_products(queries: &[ByteLine<i8>], rows: &[ByteLine<u8>], lines: usize, out: &mut [i32]) {
    byte_products_with(Tier::detect(), queries, rows, lines, out);
}

fn byte_products_with(tier: Tier, queries: &[ByteLine<i8>], rows: &[ByteLine<u8>], lines: usize, out: &mut [i32]) {
    assert!(lines <= MOST_LINES, "vectors of {lines} lines, at most {MOST_LINES}");
    let count = |n: usize, what: &str| {
        let count = n.checked_div(lines).unwrap_or(0);
        assert_eq!(count * lines, n, "lines of {what} in vectors of {lines}");
        count
    };
    let (n_queries, n_rows) = (count(queries.len(), "queries"), count(rows.len(), "rows"));
    assert_eq!(out.len(), n_queries * n_rows, "products of {n_queries} queries with {n_rows} rows");
    if out.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let work = Products { queries, rows, lines, n_rows, out: out.as_mut_ptr() };
        match tier {
            // SAFETY: the processor has the tier's instructions; sizes are as asserted.
            Tier::Avx512Vnni => return unsafe { avx512::run(&work) },
            // SAFETY: the processor has AVX2 with either tier; sizes are as asserted.
            Tier::Avx2 | Tier::AvxVnni => return unsafe { avx2::run(&work) },
            _ => {}
        }
    }
    // What compilers make of it suits ARM processors.
    let _ = tier;
    plain(queries, rows, lines, out);
}

fn plain(queries: &[ByteLine<i8>], rows: &[ByteLine<u8>], lines: usize, out: &mut [i32]) {
    let product = |query: &ByteLine<i8>, row: &ByteLine<u8>| -> i32 {
        query.0.iter().zip(&row.0).map(|(&q, &r)| i32::from(q) * i32::from(r)).sum()
    };
    let n_rows = rows.len() / lines;
    for (r, row) in rows.chunks_exact(lines).enumerate() {
        for (q, query) in queries.chunks_exact(lines).enumerate() {
            out[q * n_rows + r] = query.iter().zip(row).map(|(query, row)| product(query, row)).sum();
        }
    }
}

/// What is to be done; `out` has room for the products of all queries with all rows.
#[cfg(target_arch = "x86_64")]
struct Products<'a> {
    queries: &'a [ByteLine<i8>],
    rows: &'a [ByteLine<u8>],
    lines: usize,
    n_rows: usize,
    out: *mut i32,
}

/// Defines how an instruction set goes through queries and rows; `tile` computes some queries with some rows.
#[cfg(target_arch = "x86_64")]
macro_rules! blocks {
    ($features:literal, queries together: $queries:literal) => {
        /// Computes all products, a block of rows after the other.
        ///
        /// # Safety
        /// The processor must have the instructions; slices and room must be as [`Products`] says.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn run(work: &Products<'_>) {
            let n_queries = work.queries.len() / work.lines;
            let block = (BLOCK / work.lines).next_multiple_of(ROWS).max(ROWS);
            for first in (0..work.n_rows).step_by(block) {
                let end = work.n_rows.min(first + block);
                let mut q = 0;
                while q < n_queries {
                    // SAFETY: the caller's promise; there are as many queries, and the rows end where the slice does.
                    q += unsafe {
                        if n_queries - q >= $queries {
                            rows_of::<$queries>(work, q, first, end)
                        } else if n_queries - q >= 2 {
                            rows_of::<2>(work, q, first, end)
                        } else {
                            rows_of::<1>(work, q, first, end)
                        }
                    };
                }
            }
        }

        /// Computes the products of `Q` queries with some rows, and returns `Q`.
        ///
        /// # Safety
        /// As [`run`]; there must be `Q` queries from `q` on, and `end` rows.
        #[target_feature(enable = $features)]
        unsafe fn rows_of<const Q: usize>(work: &Products<'_>, q: usize, first: usize, end: usize) -> usize {
            let mut row = first;
            // SAFETY: the caller's promise; all rows are before `end`.
            unsafe {
                while row + ROWS <= end {
                    tile::<Q>(work, q, row);
                    row += ROWS;
                }
                for row in row..end {
                    for q in q..q + Q {
                        one(work, q, row);
                    }
                }
            }
            Q
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Products, ROWS};

    blocks!("avx512f,avx512bw,avx512vnni", queries together: 4);

    /// Computes the products of `Q` queries with four rows.
    ///
    /// # Safety
    /// As [`run`]; there must be `Q` queries from `q` on and four rows from `row` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn tile<const Q: usize>(work: &Products<'_>, q: usize, row: usize) {
        let lines = work.lines;
        let mut sums = [[_mm512_setzero_si512(); ROWS]; Q];
        // SAFETY: the caller's promise; what is fetched early is not followed, wherever it is.
        unsafe {
            let (query, rows) = (work.queries.as_ptr().add(q * lines), work.rows.as_ptr().add(row * lines));
            let next = rows.wrapping_add(ROWS * lines);
            for i in 0..lines {
                let mut values = [_mm512_setzero_si512(); ROWS];
                for r in 0..ROWS {
                    values[r] = _mm512_load_si512(rows.add(r * lines + i).cast());
                }
                if q == 0 {
                    for r in 0..ROWS {
                        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(ROWS * i + r).cast());
                    }
                }
                for q in 0..Q {
                    let factor = _mm512_load_si512(query.add(q * lines + i).cast());
                    for r in 0..ROWS {
                        sums[q][r] = _mm512_dpbusd_epi32(sums[q][r], values[r], factor);
                    }
                }
            }
            for i in 0..Q {
                _mm_storeu_si128(work.out.add((q + i) * work.n_rows + row).cast(), each_sum(sums[i]));
            }
        }
    }

    /// Returns the sum of each vector's lanes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn each_sum([a, b, c, d]: [__m512i; ROWS]) -> __m128i {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
    }

    /// Computes the product of a query with a row.
    ///
    /// # Safety
    /// As [`run`]; there must be such a query and such a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn one(work: &Products<'_>, q: usize, row: usize) {
        let lines = work.lines;
        let mut sum = _mm512_setzero_si512();
        // SAFETY: the caller's promise.
        unsafe {
            let (query, values) = (work.queries.as_ptr().add(q * lines), work.rows.as_ptr().add(row * lines));
            for i in 0..lines {
                let value = _mm512_load_si512(values.add(i).cast());
                sum = _mm512_dpbusd_epi32(sum, value, _mm512_load_si512(query.add(i).cast()));
            }
            *work.out.add(q * work.n_rows + row) = _mm512_reduce_add_epi32(sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LINE, Products, ROWS};

    blocks!("avx2", queries together: 2);

    /// Values that are widened at once.
    const PART: usize = 16;

    /// Computes the products of `Q` queries with four rows.
    ///
    /// # Safety
    /// As [`run`]; there must be `Q` queries from `q` on and four rows from `row` on.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn tile<const Q: usize>(work: &Products<'_>, q: usize, row: usize) {
        let width = work.lines * LINE;
        let mut sums = [[_mm256_setzero_si256(); ROWS]; Q];
        // SAFETY: the caller's promise; what is fetched early is not followed, wherever it is.
        unsafe {
            let query = work.queries.as_ptr().add(q * work.lines).cast::<i8>();
            let rows = work.rows.as_ptr().add(row * work.lines).cast::<u8>();
            let next = rows.wrapping_add(ROWS * width);
            let mut i = 0;
            while i < width {
                let mut factors = [_mm256_setzero_si256(); Q];
                for q in 0..Q {
                    factors[q] = _mm256_cvtepi8_epi16(_mm_load_si128(query.add(q * width + i).cast()));
                }
                if q == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(ROWS * i).cast());
                }
                for r in 0..ROWS {
                    let values = _mm256_cvtepu8_epi16(_mm_load_si128(rows.add(r * width + i).cast()));
                    for q in 0..Q {
                        sums[q][r] = _mm256_add_epi32(sums[q][r], _mm256_madd_epi16(values, factors[q]));
                    }
                }
                i += PART;
            }
            for i in 0..Q {
                _mm_storeu_si128(work.out.add((q + i) * work.n_rows + row).cast(), each_sum(sums[i]));
            }
        }
    }

    /// Returns the sum of each vector's lanes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn each_sum([a, b, c, d]: [__m256i; ROWS]) -> __m128i {
        let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all))
    }

    /// Computes the product of a query with a row.
    ///
    /// # Safety
    /// As [`run`]; there must be such a query and such a row.
    #[target_feature(enable = "avx2")]
    unsafe fn one(work: &Products<'_>, q: usize, row: usize) {
        let width = work.lines * LINE;
        let mut sum = _mm256_setzero_si256();
        // SAFETY: the caller's promise.
        unsafe {
            let query = work.queries.as_ptr().add(q * work.lines).cast::<i8>();
            let values = work.rows.as_ptr().add(row * work.lines).cast::<u8>();
            let mut i = 0;
            while i < width {
                let factor = _mm256_cvtepi8_epi16(_mm_load_si128(query.add(i).cast()));
                let value = _mm256_cvtepu8_epi16(_mm_load_si128(values.add(i).cast()));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(value, factor));
                i += PART;
            }
            let zero = _mm256_setzero_si256();
            *work.out.add(q * work.n_rows + row) = _mm_cvtsi128_si32(each_sum([sum, zero, zero, zero]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u32, n_lines: usize, extreme: bool) -> Vec<ByteLine<u8>> {
        let byte = |i: u32| {
            let mixed = (i ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
            if extreme { [0, 255, 128, 127][(mixed >> 30) as usize] } else { (mixed >> 24) as u8 }
        };
        (0..n_lines as u32).map(|line| ByteLine(std::array::from_fn(|i| byte(line * 64 + i as u32)))).collect()
    }

    fn signed(lines: &[ByteLine<u8>]) -> Vec<ByteLine<i8>> {
        lines.iter().map(|line| ByteLine(line.0.map(u8::cast_signed))).collect()
    }

    #[test]
    fn all_tiers_equal_plain_sums() {
        for tier in Tier::available() {
            for (lines, extreme) in [(1, false), (1, true), (2, false), (6, true), (12, false), (13, true)] {
                for (n_queries, n_rows) in
                    [(1, 1), (1, 4), (1, 7), (2, 9), (3, 5), (4, 13), (5, 4), (7, 6), (9, 33), (2, 300)]
                {
                    let queries = signed(&bytes(7, n_queries * lines, extreme));
                    let rows = bytes(8, n_rows * lines, extreme);
                    let mut out = vec![-1; n_queries * n_rows];
                    byte_products_with(tier, &queries, &rows, lines, &mut out);
                    for (at, found) in out.iter().enumerate() {
                        let query = queries[at / n_rows * lines..][..lines].iter().flat_map(|line| line.0);
                        let row = rows[at % n_rows * lines..][..lines].iter().flat_map(|line| line.0);
                        let sum: i64 = query.zip(row).map(|(q, r)| i64::from(q) * i64::from(r)).sum();
                        assert_eq!(i64::from(*found), sum, "{tier} {lines} {n_queries} {n_rows} {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_longest_vectors_do_not_overflow() {
        for tier in Tier::available() {
            let queries = [vec![ByteLine([i8::MIN; 64]); 1024], vec![ByteLine([i8::MAX; 64]); 1024]].concat();
            let mut out = [0; 2];
            byte_products_with(tier, &queries, &[ByteLine([255; 64]); 1024], 1024, &mut out);
            assert_eq!(out, [-128 * 255 * 65_536, 127 * 255 * 65_536], "{tier}");
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        byte_products(&[], &[], 0, &mut []);
        byte_products(&[], &[ByteLine([1; 64])], 1, &mut []);
        byte_products(&[ByteLine([1; 64])], &[], 1, &mut []);
    }

    #[test]
    #[should_panic(expected = "lines of rows in vectors of 2")]
    fn half_a_row_is_refused() {
        byte_products(&[ByteLine([1; 64]); 2], &[ByteLine([1; 64])], 2, &mut [0]);
    }

    #[test]
    #[should_panic(expected = "at most 1024")]
    fn long_vectors_are_refused() {
        byte_products(&[], &[], 1025, &mut []);
    }
}
