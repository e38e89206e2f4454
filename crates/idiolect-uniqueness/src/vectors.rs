//! Rows of unit length in one flat buffer, and exact search over them.

use idiolect_kernels::dot_products;

use self::estimate::Estimates;

mod estimate;

/// Returns the dot product of two vectors; of vectors of different sizes, what is beyond the shorter one is left out.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    idiolect_kernels::dot(a, b)
}

/// Returns the vector at unit length, or `None` when it has none: zero length, or a value that is not finite.
#[must_use]
pub fn normalised(vector: &[f32]) -> Option<Vec<f32>> {
    let norm = vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm < 1e-12 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "entries of a unit vector")]
    Some(vector.iter().map(|&v| (f64::from(v) / norm) as f32).collect())
}

/// Returns the distance of the validators between two unit vectors: 1 - |cos|, in [0, 1].
///
/// The absolute value is theirs: an opposite vector is as near as an equal one.
#[must_use]
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    distance_of(dot(a, b))
}

fn distance_of(cosine: f32) -> f32 {
    (1.0 - cosine.abs()).clamp(0.0, 1.0)
}

/// Unit vectors of one size, oldest first.
///
/// Search is exact, because the gate asks for the *second*-nearest: an approximate index may lose just that one.
/// Among many vectors, products are first estimated from a copy in bytes, with a bound of how far off the estimate can be;
/// only vectors that may be among the nearest by that are then compared value by value. So a search reads a quarter of what
/// is stored, once for all queries that are made together: 12 MB of 15,500 rows of 768.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    dimensions: usize,
    data: Vec<f32>,
    /// Where in the data the oldest row begins that is not dropped.
    start: usize,
    /// Of all rows, once there are [`WORTH_ESTIMATES`]; of none before.
    estimates: Estimates,
}

impl PartialEq for Vectors {
    fn eq(&self, other: &Self) -> bool {
        self.dimensions == other.dimensions && self.kept() == other.kept()
    }
}

impl Vectors {
    /// Makes an empty set for vectors of `dimensions` values.
    #[must_use]
    pub const fn new(dimensions: usize) -> Self {
        Self { dimensions, data: Vec::new(), start: 0, estimates: Estimates::new(dimensions) }
    }

    /// Returns how many values a vector has.
    #[must_use]
    pub const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Returns how many vectors there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match (self.data.len() - self.start).checked_div(self.dimensions) {
            Some(n) => n,
            None => 0,
        }
    }

    /// Says whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.data.len() == self.start
    }

    /// Appends a vector, brought to unit length, and says whether it could be: a vector of another size, of zero length
    /// or with a value that is not finite is left out.
    pub fn push(&mut self, vector: &[f32]) -> bool {
        if vector.len() != self.dimensions {
            return false;
        }
        let Some(unit) = normalised(vector) else { return false };
        self.push_unit(&unit);
        true
    }

    /// Appends a vector of the right size that has unit length already, as it is.
    pub(crate) fn push_unit(&mut self, unit: &[f32]) {
        self.data.extend_from_slice(unit);
        self.estimate();
    }

    /// Makes the estimates that are not there yet, once they are worth it.
    fn estimate(&mut self) {
        if self.len() >= WORTH_ESTIMATES && self.dimensions >= ESTIMATED_DIMENSIONS {
            let kept = &self.data[self.start..];
            for row in kept.chunks_exact(self.dimensions).skip(self.estimates.len()) {
                self.estimates.push(row);
            }
        }
    }

    /// Drops the oldest `n` vectors.
    pub fn drop_oldest(&mut self, n: usize) {
        self.start += n.min(self.len()) * self.dimensions;
        self.estimates.drop_oldest(n);
        // Moving all rows takes milliseconds, so it waits until there is something to gain.
        if self.start > self.data.len() / 8 {
            self.data.drain(..self.start);
            self.start = 0;
        }
    }

    /// Keeps the vectors at whose index `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let kept: Vec<f32> = (0..self.len()).filter(|&i| keep(i)).flat_map(|i| self.row(i).to_vec()).collect();
        (self.data, self.start) = (kept, 0);
        self.estimates = Estimates::new(self.dimensions);
        self.estimate();
    }

    /// Returns the vectors, oldest first.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.kept().chunks_exact(self.dimensions.max(1))
    }

    /// Returns one of the vectors.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        (index < self.len()).then(|| self.row(index))
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.kept()[index * self.dimensions..(index + 1) * self.dimensions]
    }

    fn kept(&self) -> &[f32] {
        &self.data[self.start..]
    }

    /// Returns the `k` nearest of the vectors from index `skip` on, nearest first: index and distance. Of equally near
    /// ones the older comes first. Empty for a query of another size or without a direction.
    #[must_use]
    pub fn nearest(&self, query: &[f32], k: usize, skip: usize) -> Vec<(usize, f32)> {
        self.nearest_where(query, k, |index| index >= skip)
    }

    /// Returns for each query what [`nearest`](Self::nearest) would, at one reading of the vectors: several queries cost
    /// little more than one.
    #[must_use]
    pub fn nearest_of_each<Q: AsRef<[f32]>>(&self, queries: &[Q], k: usize, skip: usize) -> Vec<Vec<(usize, f32)>> {
        self.search_each(queries, k, |index| index >= skip, NO_LIMIT).unwrap_or_default()
    }

    /// As [`nearest`](Self::nearest), among the vectors at whose index `include` is true.
    #[must_use]
    pub fn nearest_where(&self, query: &[f32], k: usize, include: impl Fn(usize) -> bool) -> Vec<(usize, f32)> {
        self.search(query, k, include, NO_LIMIT).unwrap_or_default()
    }

    /// As [`nearest_where`](Self::nearest_where), but stops as soon as `is_over` says so.
    pub(crate) fn search(
        &self,
        query: &[f32],
        k: usize,
        include: impl Fn(usize) -> bool,
        is_over: IsOver<'_>,
    ) -> Result<Vec<(usize, f32)>, OutOfTime> {
        let mut found = self.search_each(&[query], k, include, is_over)?;
        Ok(found.pop().unwrap_or_default())
    }

    /// As [`search`](Self::search), for several queries.
    pub(crate) fn search_each<Q: AsRef<[f32]>>(
        &self,
        queries: &[Q],
        k: usize,
        include: impl Fn(usize) -> bool,
        is_over: IsOver<'_>,
    ) -> Result<Vec<Vec<(usize, f32)>>, OutOfTime> {
        let mut best: Vec<Nearest> = queries.iter().map(|_| Nearest::new(k)).collect();
        let (mut asked, mut units) = (Vec::new(), Vec::new());
        for (i, query) in queries.iter().map(AsRef::as_ref).enumerate() {
            if let (true, Some(unit)) = (query.len() == self.dimensions && k > 0, normalised(query)) {
                asked.push(i);
                units.extend_from_slice(&unit);
            }
        }
        if !asked.is_empty() {
            let mut nearest: Vec<Nearest> = asked.iter().map(|_| Nearest::new(k)).collect();
            let candidates = self.estimates.candidates(&units, k, &include, is_over)?;
            match candidates {
                Some(candidates) => self.compare(&units, &candidates, &mut nearest, is_over)?,
                None => self.compare_all(&units, &include, &mut nearest, is_over)?,
            }
            asked.into_iter().zip(nearest).for_each(|(i, nearest)| best[i] = nearest);
        }
        Ok(best.into_iter().map(|nearest| nearest.found).collect())
    }

    /// Compares each query with its candidates, oldest first.
    fn compare(
        &self,
        units: &[f32],
        candidates: &[Vec<usize>],
        nearest: &mut [Nearest],
        is_over: IsOver<'_>,
    ) -> Result<(), OutOfTime> {
        for ((unit, candidates), nearest) in units.chunks(self.dimensions).zip(candidates).zip(nearest) {
            for some in candidates.chunks(ROWS_BETWEEN_LOOKS) {
                if is_over() {
                    return Err(OutOfTime);
                }
                for &row in some {
                    nearest.see(row, distance(unit, self.row(row)));
                }
            }
        }
        Ok(())
    }

    /// Compares all queries with all rows.
    fn compare_all(
        &self,
        units: &[f32],
        include: &impl Fn(usize) -> bool,
        nearest: &mut [Nearest],
        is_over: IsOver<'_>,
    ) -> Result<(), OutOfTime> {
        let mut products = vec![0.0; nearest.len() * ROWS_BETWEEN_LOOKS];
        let mut included = [false; ROWS_BETWEEN_LOOKS];
        for (block, rows) in self.kept().chunks(ROWS_BETWEEN_LOOKS * self.dimensions).enumerate() {
            if is_over() {
                return Err(OutOfTime);
            }
            let (first, n) = (block * ROWS_BETWEEN_LOOKS, rows.len() / self.dimensions);
            (first..).zip(&mut included[..n]).for_each(|(index, included)| *included = include(index));
            let Some(skipped) = included[..n].iter().position(|&included| included) else { continue };
            let products = &mut products[..nearest.len() * (n - skipped)];
            dot_products(units, &rows[skipped * self.dimensions..], self.dimensions, products);
            for (nearest, products) in nearest.iter_mut().zip(products.chunks(n - skipped)) {
                for ((row, product), included) in (first + skipped..).zip(products).zip(&included[skipped..n]) {
                    if *included {
                        nearest.see(row, distance_of(*product));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The `k` nearest so far, nearest first.
struct Nearest {
    k: usize,
    /// The distance to be below, once there are `k`.
    bound: f32,
    found: Vec<(usize, f32)>,
}

impl Nearest {
    const fn new(k: usize) -> Self {
        Self { k, bound: f32::INFINITY, found: Vec::new() }
    }

    #[inline]
    fn see(&mut self, index: usize, distance: f32) {
        if distance < self.bound {
            self.take(index, distance);
        }
    }

    #[cold]
    fn take(&mut self, index: usize, distance: f32) {
        let place = self.found.partition_point(|&(_, other)| other <= distance);
        self.found.insert(place, (index, distance));
        self.found.truncate(self.k);
        if let (true, Some(&(_, worst))) = (self.found.len() == self.k, self.found.last()) {
            self.bound = worst;
        }
    }
}

/// Says whether a search must stop.
pub(crate) type IsOver<'a> = &'a dyn Fn() -> bool;

/// For searches that go on to their end.
pub(crate) const NO_LIMIT: IsOver<'static> = &|| false;

/// A search was stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfTime;

/// Rows that are searched between two looks at the clock: some tens of microseconds.
const ROWS_BETWEEN_LOOKS: usize = 256;

/// Rows from which on estimates are made: fewer are compared as quickly.
const WORTH_ESTIMATES: usize = 512;

/// Dimensions from which on estimates are made.
const ESTIMATED_DIMENSIONS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors_without_direction_are_left_out() {
        let mut vectors = Vectors::new(3);
        for bad in [&[0.0, 0.0, 0.0][..], &[f32::NAN, 1.0, 0.0], &[f32::INFINITY, 0.0, 0.0], &[1.0, 0.0]] {
            assert!(!vectors.push(bad), "{bad:?}");
            assert!(vectors.nearest(bad, 2, 0).is_empty());
        }
        assert!(vectors.push(&[3.0, 4.0, 0.0]));
        assert_eq!(vectors.rows().next().unwrap(), [0.6, 0.8, 0.0]);
        assert_eq!(vectors.len(), 1);
    }

    #[test]
    fn no_dimensions_is_no_panic() {
        let mut vectors = Vectors::new(0);
        assert!(!vectors.push(&[]));
        assert_eq!(vectors.len(), 0);
        assert_eq!(vectors.rows().len(), 0);
        vectors.drop_oldest(3);
        assert!(vectors.nearest(&[], 1, 0).is_empty());
    }

    #[test]
    fn opposite_is_as_near_as_equal() {
        let mut vectors = Vectors::new(2);
        vectors.push(&[1.0, 0.0]);
        assert_eq!(vectors.nearest(&[-2.0, 0.0], 1, 0), [(0, 0.0)]);
    }

    #[test]
    fn rows_are_dropped_whether_or_not_they_are_moved() {
        let mut vectors = Vectors::new(2);
        let row = |i: u8| [(f32::from(i) / 100.0).cos(), (f32::from(i) / 100.0).sin()];
        for i in 0..100_u8 {
            vectors.push(&row(i));
            vectors.drop_oldest(usize::from(i >= 40));
            let mut expected = Vectors::new(2);
            assert!((i.saturating_sub(39)..=i).all(|i| expected.push(&row(i))));
            assert_eq!((&vectors, vectors.len()), (&expected, expected.len()));
            assert_eq!(vectors.nearest(&row(i), 1, 0)[0].0, vectors.len() - 1);
            assert_eq!(vectors.rows().len(), expected.len());
        }
        assert!(vectors.data.len() <= 2 * 46, "{}", vectors.data.len());
        vectors.retain(|index| index >= 38);
        assert_eq!(vectors.len(), 2);
        vectors.drop_oldest(5);
        assert!(vectors.is_empty() && vectors.nearest(&[1.0, 0.0], 1, 0).is_empty());
    }

    #[test]
    fn a_search_stops_when_it_is_told_to() {
        let mut vectors = Vectors::new(2);
        assert!((0..1000).all(|_| vectors.push(&[1.0, 0.0])));
        let looks = std::cell::Cell::new(0);
        let after = |n: i32| {
            looks.set(0);
            let is_over = || looks.replace(looks.get() + 1) >= n;
            vectors.search(&[1.0, 0.0], 1, |_| true, &is_over)
        };
        assert_eq!(after(0), Err(OutOfTime));
        assert_eq!(after(3), Err(OutOfTime));
        assert_eq!(after(4), Ok(vec![(0, 0.0)]));
        assert_eq!(looks.get(), 4);
    }

    #[test]
    fn a_search_of_several_leaves_out_what_cannot_be_asked() {
        let mut vectors = Vectors::new(2);
        assert!((0..700).all(|i| vectors.push(&[1.0, i as f32])));
        let queries = [vec![1.0, 300.0], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0], vec![], vec![-2.0, 0.0]];
        let found = vectors.nearest_of_each(&queries, 2, 0);
        assert_eq!(found.len(), queries.len());
        assert!(found[1..5].iter().all(Vec::is_empty), "{found:?}");
        for (query, found) in queries.iter().zip(&found) {
            assert_eq!(*found, vectors.nearest(query, 2, 0));
        }
        assert_eq!(found[5][0], (0, 0.0));
        assert!(vectors.nearest_of_each::<Vec<f32>>(&[], 2, 0).is_empty());
        assert_eq!(vectors.nearest_of_each(&queries, 0, 0), vec![Vec::new(); 6]);
        assert_eq!(vectors.nearest_of_each(&queries, 2, 700), vec![Vec::new(); 6]);
    }

    #[test]
    fn of_equally_near_ones_the_older_comes_first() {
        let mut vectors = Vectors::new(3);
        assert!((0..1000).all(|i| vectors.push(&[1.0, 0.0, f32::from(u8::from(i % 2 == 0))])));
        let found = vectors.nearest_of_each(&[[1.0, 0.0, 0.0]], 3, 400);
        assert_eq!(found, [[(401, 0.0), (403, 0.0), (405, 0.0)]]);
    }

    fn any_rows() -> impl Strategy<Value = Vec<Vec<f32>>> {
        proptest::collection::vec(proptest::collection::vec(-1.0_f32..1.0, 37), 1..30)
    }

    proptest! {
        #[test]
        fn dot_equals_the_plain_sum(a in proptest::collection::vec(-1.0_f32..1.0, 0..100)) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let plain: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            prop_assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-4);
        }

        #[test]
        fn nearest_equals_sorting_everything(rows in any_rows(), k in 1_usize..5, skip in 0_usize..4) {
            let mut vectors = Vectors::new(37);
            for row in &rows {
                vectors.push(row);
            }
            prop_assume!(vectors.len() == rows.len());
            let query = normalised(&rows[0]).unwrap();
            let mut all: Vec<(usize, f32)> =
                vectors.rows().map(|row| distance(&query, row)).enumerate().skip(skip).collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            all.truncate(k);
            prop_assert_eq!(vectors.nearest(&rows[0], k, skip), all);
            for (query, found) in rows.iter().zip(vectors.nearest_of_each(&rows, k, skip)) {
                prop_assert_eq!(vectors.nearest(query, k, skip), found);
            }
        }
    }
}
