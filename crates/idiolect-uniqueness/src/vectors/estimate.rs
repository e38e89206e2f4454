//! Estimates of dot products from bytes, and how far off they can be.
//!
//! A unit vector `v` is kept as bytes `b`, each less 128, and a scale `s`: `v = s·b + e`, and the length of what is left over,
//! `|e|`, is known. With a query `u = t·c + f` of the same kind,
//!
//! ```text
//! u·v = s·t·(b·c) + (t·c)·e + f·v,    so    |u·v - s·t·(b·c)| <= |t·c|·|e| + |f|·|v|
//! ```
//!
//! by Cauchy and Schwarz. `b·c` is a sum of integers and exact. A vector is passed over only if, by these bounds, there are
//! `k` others that are nearer for certain. Of 5,900 replies of forty language models, by all-MiniLM-L6-v2, two to nine are left.

use idiolect_kernels::{ByteLine, byte_products};

use super::{IsOver, OutOfTime, ROWS_BETWEEN_LOOKS};

/// Values of a line.
const LINE: usize = 64;

/// What bytes are shifted by where they stand for numbers with a sign.
const SHIFT: u8 = 128;

/// The largest number that a byte stands for.
const LARGEST: f32 = 127.0;

/// Dimensions up to which products of bytes fit 32 bits.
const MOST_DIMENSIONS: usize = 65_536;

/// More than what rounding adds to a bound that is itself computed.
const ROUNDING: f64 = 1.0 + 1e-6;

/// Estimates are looked at so many at a time.
const CHUNK: usize = 16;

/// Unit vectors as bytes, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Estimates {
    dimensions: usize,
    rows: Vec<ByteLine<u8>>,
    scales: Vec<f32>,
    /// Lengths of what is left over.
    errors: Vec<f32>,
    /// How many of the oldest are dropped, and not moved out yet.
    dropped: usize,
}

/// Queries as bytes.
struct Queries {
    lines: Vec<ByteLine<i8>>,
    each: Vec<Query>,
}

struct Query {
    scale: f32,
    /// What the shift of the rows' bytes adds to each product.
    shift: i32,
    /// |t·c|.
    length: f32,
    /// |f|·|v|, and what rounding may add to it and to a product that is computed value by value.
    error: f32,
}

/// What is known of one query's nearest so far.
struct Sifted {
    /// The largest numbers that the cosines of `k` rows are not below.
    floors: Vec<f32>,
    k: usize,
    /// Rows whose cosine may be above all but `k` of those numbers when they were seen, and what it is at most.
    candidates: Vec<(usize, f32)>,
}

impl Estimates {
    pub(super) const fn new(dimensions: usize) -> Self {
        Self { dimensions, rows: Vec::new(), scales: Vec::new(), errors: Vec::new(), dropped: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.scales.len() - self.dropped
    }

    const fn lines(&self) -> usize {
        self.dimensions.div_ceil(LINE)
    }

    /// Takes a unit vector in.
    pub(super) fn push(&mut self, unit: &[f32]) {
        let (scale, bytes, error, _) = quantised(unit);
        let shifted = bytes.chunks(LINE).map(|chunk| {
            let mut line = ByteLine([SHIFT; LINE]);
            line.0
                .iter_mut()
                .zip(chunk)
                .for_each(|(shifted, byte)| *shifted = byte.cast_unsigned().wrapping_add(SHIFT));
            line
        });
        self.rows.extend(shifted);
        self.scales.push(scale);
        self.errors.push(error);
    }

    pub(super) fn drop_oldest(&mut self, n: usize) {
        self.dropped += n.min(self.len());
        if self.dropped > self.scales.len() / 8 {
            self.rows.drain(..self.dropped * self.lines());
            self.scales.drain(..self.dropped);
            self.errors.drain(..self.dropped);
            self.dropped = 0;
        }
    }

    /// Returns for each of the unit vectors the rows, oldest first, that may be among the `k` nearest of those included;
    /// `None` where there are no estimates, or so little can be told from them that comparing all rows is quicker.
    pub(super) fn candidates(
        &self,
        units: &[f32],
        k: usize,
        include: &impl Fn(usize) -> bool,
        is_over: IsOver<'_>,
    ) -> Result<Option<Vec<Vec<usize>>>, OutOfTime> {
        let n_rows = self.len();
        if n_rows == 0 || self.dimensions > MOST_DIMENSIONS || k > n_rows / 8 {
            return Ok(None);
        }
        let queries = Queries::new(units, self.dimensions);
        let (lines, n_queries) = (self.lines(), queries.each.len());
        let mut sifted: Vec<Sifted> = (0..n_queries).map(|_| Sifted::new(k)).collect();
        let mut products = vec![0; n_queries * ROWS_BETWEEN_LOOKS];
        let mut included = [false; ROWS_BETWEEN_LOOKS];
        let kept = &self.rows[self.dropped * lines..];
        let (scales, errors) = (&self.scales[self.dropped..], &self.errors[self.dropped..]);
        for first in (0..n_rows).step_by(ROWS_BETWEEN_LOOKS) {
            if is_over() {
                return Err(OutOfTime);
            }
            let end = n_rows.min(first + ROWS_BETWEEN_LOOKS);
            (first..end).zip(&mut included).for_each(|(index, included)| *included = include(index));
            let Some(skipped) = included[..end - first].iter().position(|&included| included) else { continue };
            let from = first + skipped;
            let products = &mut products[..n_queries * (end - from)];
            byte_products(&queries.lines, &kept[from * lines..end * lines], lines, products);
            for ((query, sifted), products) in queries.each.iter().zip(&mut sifted).zip(products.chunks(end - from)) {
                let block = Block {
                    first: from,
                    products,
                    scales: &scales[from..end],
                    errors: &errors[from..end],
                    included: &included[skipped..],
                };
                sifted.see(query, &block);
            }
        }
        let most = n_queries * n_rows / 8;
        let candidates: Vec<Vec<usize>> = sifted.into_iter().map(Sifted::rows).collect();
        Ok((candidates.iter().map(Vec::len).sum::<usize>() <= most).then_some(candidates))
    }
}

impl Queries {
    fn new(units: &[f32], dimensions: usize) -> Self {
        let mut queries = Self { lines: Vec::new(), each: Vec::new() };
        // A sum of products of n values is off by n roundings at most; one more digit covers those of the estimates.
        let rounding = f64::from(f32::EPSILON) * (dimensions as f64 + 32.0);
        for unit in units.chunks(dimensions) {
            let (scale, bytes, error, length) = quantised(unit);
            queries.lines.extend(bytes.chunks(LINE).map(|chunk| {
                let mut line = ByteLine([0; LINE]);
                line.0[..chunk.len()].copy_from_slice(chunk);
                line
            }));
            let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
            let error = upper(f64::from(error) * ROUNDING + rounding);
            queries.each.push(Query { scale, shift: i32::from(SHIFT) * sum, length, error });
        }
        queries
    }
}

/// Some rows' products with one query.
struct Block<'a> {
    first: usize,
    products: &'a [i32],
    scales: &'a [f32],
    errors: &'a [f32],
    included: &'a [bool],
}

impl Sifted {
    fn new(k: usize) -> Self {
        Self { floors: Vec::with_capacity(k + 1), k, candidates: Vec::new() }
    }

    /// What a cosine must be above to count: less than `k` rows are above it for certain. Cosines of 1 and more are all the
    /// same distance, and so are some that differ in their last bits, which the margin of [`Query::error`] covers.
    fn bound(&self) -> f32 {
        if self.floors.len() < self.k { -1.0 } else { self.floors[self.k - 1].min(1.0) }
    }

    fn see(&mut self, query: &Query, block: &Block<'_>) {
        let (products, last) = block.products.as_chunks();
        let (scales, last_scales) = block.scales.as_chunks();
        let (errors, last_errors) = block.errors.as_chunks();
        for (i, ((products, scales), errors)) in products.iter().zip(scales).zip(errors).enumerate() {
            self.see_chunk(query, block, i * CHUNK, (products, scales, errors));
        }
        if !last.is_empty() {
            // What is put beside the last rows is not included.
            let (mut products, mut scales, mut errors) = ([0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
            products[..last.len()].copy_from_slice(last);
            scales[..last.len()].copy_from_slice(last_scales);
            errors[..last.len()].copy_from_slice(last_errors);
            self.see_chunk(query, block, block.products.len() - last.len(), (&products, &scales, &errors));
        }
    }

    /// The same for the rows from `at` on. Most chunks have none that counts, and are done with here.
    fn see_chunk(
        &mut self,
        query: &Query,
        block: &Block<'_>,
        at: usize,
        (products, scales, errors): (&[i32; CHUNK], &[f32; CHUNK], &[f32; CHUNK]),
    ) {
        let mut bound = self.bound();
        let (mut most, mut estimates, mut any) = ([0.0_f32; CHUNK], [0.0_f32; CHUNK], false);
        for i in 0..CHUNK {
            estimates[i] = ((products[i] - query.shift) as f32 * (query.scale * scales[i])).abs();
            most[i] = estimates[i] + (query.length * errors[i] + query.error);
            any |= most[i] >= bound;
        }
        if !any {
            return;
        }
        for i in 0..CHUNK.min(block.products.len() - at) {
            if most[i] >= bound && block.included[at + i] {
                self.candidates.push((block.first + at + i, most[i]));
                // As far below the estimate as the most is above it.
                self.floor(2.0 * estimates[i] - most[i]);
                bound = self.bound();
            }
        }
    }

    fn floor(&mut self, floor: f32) {
        let place = self.floors.partition_point(|&other| other >= floor);
        if place < self.k {
            self.floors.insert(place, floor);
            self.floors.truncate(self.k);
        }
    }

    fn rows(self) -> Vec<usize> {
        let bound = self.bound();
        self.candidates.into_iter().filter(|&(_, most)| most >= bound).map(|(row, _)| row).collect()
    }
}

/// Returns a vector's scale, its bytes, the length of what they leave over, and the length of what they stand for; both
/// lengths not below what they are.
fn quantised(unit: &[f32]) -> (f32, Vec<i8>, f32, f32) {
    const LANES: usize = 8;
    let largest = unit.iter().fold(0.0_f32, |largest, value| if value.abs() > largest { value.abs() } else { largest });
    // A unit vector has a value that is not small.
    let scale = (largest / LARGEST).max(f32::MIN_POSITIVE);
    let inverse = 1.0 / scale;
    let mut bytes = Vec::with_capacity(unit.len().next_multiple_of(LANES));
    let (mut left, mut length) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    for chunk in unit.chunks(LANES) {
        let mut values = [0.0; LANES];
        values[..chunk.len()].copy_from_slice(chunk);
        // The nearest whole number, by what adding a large one leaves of the fraction. If it is not quite the nearest, that
        // is part of what is left over.
        let whole: [f32; LANES] = std::array::from_fn(|i| (values[i] * inverse + TO_WHOLE) - TO_WHOLE);
        for i in 0..LANES {
            let stands_for = f64::from(scale) * f64::from(whole[i]);
            let over = f64::from(values[i]) - stands_for;
            left[i] += over * over;
            length[i] += stands_for * stands_for;
        }
        #[expect(clippy::cast_possible_truncation, reason = "whole numbers of at most 127 in magnitude")]
        bytes.extend(whole.map(|whole| whole as i8));
    }
    bytes.truncate(unit.len());
    let upper_length = |squares: [f64; LANES]| upper(squares.iter().sum::<f64>().sqrt() * ROUNDING);
    (scale, bytes, upper_length(left), upper_length(length))
}

/// Added to a number of at most 2^22 in magnitude and taken off again, leaves the nearest whole number.
const TO_WHOLE: f32 = 12_582_912.0;

/// Returns a number in single precision that is not below this one.
fn upper(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounded up")]
    let single = value as f32;
    single.next_up()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Vectors, dot, normalised};
    use super::*;

    fn number(seed: u64) -> f32 {
        let mixed = (seed ^ (seed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn random(seed: u64, dimensions: usize) -> Vec<f32> {
        (0..dimensions as u64).map(|i| number(seed * 65_537 + i)).collect()
    }

    #[test]
    fn products_are_within_the_bounds() {
        for dimensions in [64, 100, 384, 768] {
            for seed in 0..200 {
                let mut a = random(2 * seed, dimensions);
                let mut b = random(2 * seed + 1, dimensions);
                // Some nearly equal, some opposite, some with a value that dwarfs the others.
                match seed % 4 {
                    0 => b.iter_mut().zip(&a).for_each(|(b, a)| *b = *b * 0.01 + a),
                    1 => b.iter_mut().zip(&a).for_each(|(b, a)| *b = *b * 0.1 - a),
                    2 => a[7] *= 50.0,
                    _ => {}
                }
                let (a, b) = (normalised(&a).unwrap(), normalised(&b).unwrap());
                let queries = Queries::new(&a, dimensions);
                let mut rows = Estimates::new(dimensions);
                rows.push(&b);
                let mut products = [0];
                byte_products(&queries.lines, &rows.rows, rows.lines(), &mut products);
                let query = &queries.each[0];
                let estimate =
                    f64::from(products[0] - query.shift) * f64::from(query.scale) * f64::from(rows.scales[0]);
                let bound = f64::from(query.length) * f64::from(rows.errors[0]) + f64::from(query.error);
                let difference = (f64::from(dot(&a, &b)) - estimate).abs();
                assert!(difference <= bound, "{dimensions} {seed}: {difference} > {bound}");
                assert!(bound < 0.12, "{dimensions} {seed}: {bound} tells nothing");
            }
        }
    }

    /// Rows of several kinds: far from each other, near to each other, equal, opposite, equal but for rounding.
    fn rows(seed: u64, dimensions: usize, n: usize) -> Vec<Vec<f32>> {
        let topic = |i: u64| random(seed * 1_000 + i, dimensions);
        let row = |i: usize| {
            let seed = seed * 100_000 + i as u64;
            let mut row = topic(i as u64 % 7);
            let noise = random(seed, dimensions);
            let (mine, other) = [(1.0, 0.0), (-1.0, 0.0), (1.0, 1e-7), (1.0, 0.05), (1.0, 0.6), (0.0, 1.0), (0.3, 1.0)]
                [(number(seed + 1).abs() * 6.999) as usize];
            row.iter_mut().zip(&noise).for_each(|(value, noise)| *value = mine * *value + other * noise);
            row
        };
        (0..n).map(row).collect()
    }

    fn plain(vectors: &Vectors, query: &[f32], k: usize, include: impl Fn(usize) -> bool) -> Vec<(usize, f32)> {
        let Some(query) = normalised(query) else { return Vec::new() };
        let rows = vectors.rows().enumerate().filter(|(index, _)| include(*index));
        let mut all: Vec<(usize, f32)> =
            rows.map(|(index, row)| (index, (1.0 - dot(&query, row).abs()).clamp(0.0, 1.0))).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        all.truncate(k);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_found_is_what_a_plain_search_finds(
            seed in 0_u64..1_000_000,
            dimensions in prop_oneof![Just(64_usize), Just(65), Just(100), Just(200)],
            n in 500_usize..1_400,
            k in 1_usize..4,
            skip in 0_usize..700,
            dropped in 0_usize..300,
        ) {
            let all = rows(seed, dimensions, n);
            let mut vectors = Vectors::new(dimensions);
            for row in &all {
                prop_assert!(vectors.push(row));
            }
            vectors.drop_oldest(dropped);
            prop_assert_eq!(vectors.estimates.len(), if n < 512 { 0 } else { vectors.len() });
            let mut queries: Vec<Vec<f32>> = rows(seed + 1, dimensions, 6);
            queries.extend([all[n - 1].clone(), all[n / 2].iter().map(|v| -3.0 * v).collect()]);
            queries.extend([vec![0.0; dimensions], vec![f32::NAN; dimensions], vec![1.0; 3]]);
            let found = vectors.nearest_of_each(&queries, k, skip);
            for (query, found) in queries.iter().zip(&found) {
                let expected =
                    if query.len() == dimensions { plain(&vectors, query, k, |i| i >= skip) } else { Vec::new() };
                prop_assert_eq!(found, &expected);
            }
            let odd = |i: usize| i % 3 == 1;
            prop_assert_eq!(vectors.nearest_where(&queries[0], k, odd), plain(&vectors, &queries[0], k, odd));
            vectors.retain(odd);
            prop_assert_eq!(vectors.nearest(&queries[0], k, 0), plain(&vectors, &queries[0], k, |_| true));
        }
    }

    #[test]
    fn equal_rows_and_rows_without_a_difference_in_distance_are_found_in_order() {
        let one = random(1, 128);
        let mut vectors = Vectors::new(128);
        for i in 0..4_000 {
            // All alike but for some: nothing can be told from estimates.
            let row = if i % 400 == 7 { random(i, 128) } else { one.clone() };
            vectors.push(&row);
        }
        assert_eq!(vectors.nearest(&one, 3, 5).iter().map(|found| found.0).collect::<Vec<_>>(), [5, 6, 8]);
        assert!(vectors.estimates.candidates(&normalised(&one).unwrap(), 2, &|_| true, &|| false).unwrap().is_none());
        // A few equal ones among others.
        let mut vectors = Vectors::new(128);
        for i in 0..4_000 {
            let row = if i % 1_000 == 7 { one.clone() } else { random(i + 10, 128) };
            vectors.push(&row);
        }
        assert_eq!(vectors.nearest(&one, 3, 8).iter().map(|found| found.0).collect::<Vec<_>>(), [1_007, 2_007, 3_007]);
        let few = vectors.estimates.candidates(&normalised(&one).unwrap(), 2, &|_| true, &|| false).unwrap().unwrap();
        assert!((4..40).contains(&few[0].len()), "{}", few[0].len());
    }

    #[test]
    fn a_search_by_estimates_stops_when_it_is_told_to() {
        let mut vectors = Vectors::new(64);
        (0..1_000).for_each(|i| assert!(vectors.push(&random(i, 64))));
        let looks = std::cell::Cell::new(0);
        let after = |n: i32| {
            looks.set(0);
            let is_over = || looks.replace(looks.get() + 1) >= n;
            vectors.search(&random(3, 64), 1, |_| true, &is_over)
        };
        // Four blocks of estimates, and one of candidates.
        for n in 0..5 {
            assert_eq!(after(n), Err(OutOfTime));
        }
        assert_eq!(after(5).unwrap()[0].0, 3);
        assert_eq!(looks.get(), 5);
    }
}
