//! Collecting the values that lie above, below or between.

#![expect(unsafe_code, reason = "stores of sixteen numbers into vectors' spare room, of which some count")]

use super::pack::Pack;
use super::{BLOCK, LANES, Scan, widest};

/// A wish about values.
pub(super) trait Wish {
    /// Returns a bit for each value that is wanted; rows are asked about in order.
    ///
    /// # Safety
    /// The processor has the registers of `P`.
    unsafe fn mask<P: Pack>(&mut self, row: &[f32; LANES]) -> u32;
}

pub(super) struct AtLeast(pub(super) f32);

impl Wish for AtLeast {
    #[inline(always)]
    unsafe fn mask<P: Pack>(&mut self, row: &[f32; LANES]) -> u32 {
        // SAFETY: as the caller says.
        unsafe { P::at_least(row, self.0) }
    }
}

pub(super) struct Between {
    pub(super) low: f32,
    pub(super) above: f32,
}

impl Wish for Between {
    #[inline(always)]
    unsafe fn mask<P: Pack>(&mut self, row: &[f32; LANES]) -> u32 {
        // SAFETY: as the caller says.
        unsafe { P::at_least(row, self.low) & !P::at_least(row, self.above) }
    }
}

pub(super) struct Best {
    pub(super) key: f32,
    pub(super) n_equal: usize,
}

impl Wish for Best {
    #[inline(always)]
    unsafe fn mask<P: Pack>(&mut self, row: &[f32; LANES]) -> u32 {
        // SAFETY: as the caller says.
        let (above, mut equal) = unsafe { P::ranks(row, self.key) };
        let n = equal.count_ones() as usize;
        if n > self.n_equal {
            // All but the first ones go, from the last one down.
            for _ in 0..n - self.n_equal {
                equal &= !(1 << equal.ilog2());
            }
        }
        self.n_equal -= n.min(self.n_equal);
        above | equal
    }
}

/// Fills a row with the values at its beginning; the mask has a bit for each of these.
#[inline(always)]
fn padded<T: Copy + Default>(values: &[T]) -> ([T; LANES], u32) {
    let mut row = [T::default(); LANES];
    row[..values.len()].copy_from_slice(values);
    (row, (1 << values.len()) - 1)
}

/// Returns the bits of sixteen numbers.
#[inline(always)]
fn bits(row: &[f32; LANES]) -> &[u32; LANES] {
    // SAFETY: `f32` and `u32` are of one size and alignment, and any bits are a `u32`.
    unsafe { &*std::ptr::from_ref(row).cast() }
}

/// Lists wanted values of a whole vocabulary, and where they are.
pub(super) struct List<'a, W> {
    pub(super) values: &'a [f32],
    pub(super) maxima: &'a [f32],
    /// Blocks whose maximum is below it have nothing that is wanted.
    pub(super) bar: f32,
    pub(super) wish: W,
    /// Of more than so many not all need to be listed.
    pub(super) most: usize,
    pub(super) ids: &'a mut Vec<u32>,
    pub(super) kept: &'a mut Vec<f32>,
}

/// Where values are in a row.
const OFFSETS: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

impl<W: Wish> Scan for List<'_, W> {
    /// Whether all that is wanted is there.
    type Output = bool;

    #[inline(always)]
    fn run<P: Pack>(mut self) -> bool {
        self.ids.clear();
        self.kept.clear();
        let blocks = self.values.chunks(BLOCK).zip(self.maxima).zip((0u32..).step_by(BLOCK));
        for ((block, greatest), first) in blocks {
            if *greatest < self.bar {
                continue;
            }
            if self.kept.len() > self.most {
                return false;
            }
            self.ids.reserve(BLOCK + LANES);
            self.kept.reserve(BLOCK + LANES);
            let (rows, rest) = block.as_chunks::<LANES>();
            let mut at = first;
            for row in rows {
                // SAFETY: tiers run where their registers are. A block has at most 64 values, so at most 64 are put behind what
                // was there when room was made for 80.
                unsafe { self.put::<P>(row, u32::MAX, at) };
                at += LANES as u32;
            }
            if !rest.is_empty() {
                let (row, counts) = padded(rest);
                // SAFETY: as above.
                unsafe { self.put::<P>(&row, counts, at) };
            }
        }
        self.kept.len() <= self.most
    }
}

impl<W: Wish> List<'_, W> {
    /// Adds what is wanted of a row.
    ///
    /// # Safety
    /// The processor has the registers of `P`, and both lists have room for sixteen more.
    #[inline(always)]
    unsafe fn put<P: Pack>(&mut self, row: &[f32; LANES], counts: u32, first: u32) {
        let n = self.kept.len();
        let mut ids = OFFSETS;
        ids.iter_mut().for_each(|id| *id += first);
        // SAFETY: there is room for sixteen, of which the first ones then count; both lists are of one length.
        unsafe {
            let mask = self.wish.mask::<P>(row) & counts;
            P::pack(&ids, mask, self.ids.as_mut_ptr().add(n));
            P::pack(bits(row), mask, self.kept.as_mut_ptr().add(n).cast());
            let n = n + mask.count_ones() as usize;
            self.ids.set_len(n);
            self.kept.set_len(n);
        }
    }
}

/// Collects the values of at least `threshold` and where they are, in order. `maxima` are those that
/// [`block_maxima`](super::block_maxima) wrote for the same values.
pub fn collect_at_least(values: &[f32], maxima: &[f32], threshold: f32, ids: &mut Vec<u32>, kept: &mut Vec<f32>) {
    widest(List { values, maxima, bar: threshold, wish: AtLeast(threshold), most: usize::MAX, ids, kept });
}

/// Does what [`collect_at_least`] does where these are at most `most`, and says whether they are. If not, what was collected
/// is a part of them.
#[must_use]
pub fn collect_few_at_least(
    values: &[f32],
    maxima: &[f32],
    (threshold, most): (f32, usize),
    ids: &mut Vec<u32>,
    kept: &mut Vec<f32>,
) -> bool {
    widest(List { values, maxima, bar: threshold, wish: AtLeast(threshold), most, ids, kept })
}

/// Collects the values that `total_cmp` puts above `key`, and the first `n_equal` of those that have its bits, and where they
/// are, in order. `maxima` are those that [`block_maxima`](super::block_maxima) wrote for the same values, of which none is NaN.
pub fn collect_best(
    values: &[f32],
    maxima: &[f32],
    (key, n_equal): (f32, usize),
    ids: &mut Vec<u32>,
    kept: &mut Vec<f32>,
) {
    widest(List { values, maxima, bar: key, wish: Best { key, n_equal }, most: usize::MAX, ids, kept });
}

/// Keeps the wanted values of a list.
pub(super) struct Keep<'a, W> {
    pub(super) wish: W,
    /// Go with them, where there are as many.
    pub(super) ids: Option<&'a mut Vec<u32>>,
    pub(super) kept: &'a mut Vec<f32>,
}

impl<W: Wish> Scan for Keep<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pack>(mut self) {
        let len = self.ids.as_ref().map_or(self.kept.len(), |ids| ids.len().min(self.kept.len()));
        let mut n = 0;
        let mut at = 0;
        while at < len {
            let (row, counts) = match self.kept[at..len].first_chunk::<LANES>() {
                Some(row) => (*row, u32::MAX),
                None => padded(&self.kept[at..len]),
            };
            let is_whole = counts == u32::MAX;
            let mut packed = [0; LANES];
            // SAFETY: tiers run where their registers are; an array of sixteen is good for sixteen. What is packed goes to
            // where values were read before, at most as far as the row just read.
            let mask = unsafe {
                let mask = self.wish.mask::<P>(&row) & counts;
                let to = if is_whole { self.kept.as_mut_ptr().add(n).cast() } else { packed.as_mut_ptr() };
                P::pack(bits(&row), mask, to);
                mask
            };
            let count = mask.count_ones() as usize;
            if !is_whole {
                for (kept, bits) in self.kept[n..].iter_mut().zip(&packed[..count]) {
                    *kept = f32::from_bits(*bits);
                }
            }
            if let Some(ids) = self.ids.as_deref_mut() {
                let row = if is_whole { ids[at..].first_chunk::<LANES>().copied() } else { None };
                match row {
                    // SAFETY: as above.
                    Some(row) => unsafe { P::pack(&row, mask, ids.as_mut_ptr().add(n)) },
                    None => {
                        let (row, _) = padded(&ids[at..len]);
                        // SAFETY: as above.
                        unsafe { P::pack(&row, mask, packed.as_mut_ptr()) };
                        ids[n..n + count].copy_from_slice(&packed[..count]);
                    }
                }
            }
            n += count;
            at += LANES;
        }
        self.kept.truncate(n);
        if let Some(ids) = self.ids {
            ids.truncate(n);
        }
    }
}

/// Keeps the values of at least `threshold`, and the ids that stand beside them.
pub fn keep_at_least(threshold: f32, ids: &mut Vec<u32>, kept: &mut Vec<f32>) {
    widest(Keep { wish: AtLeast(threshold), ids: Some(ids), kept });
}

/// Keeps the values that `total_cmp` puts above `key`, and the first `n_equal` of those that have its bits; and the ids that
/// stand beside them.
pub fn keep_best((key, n_equal): (f32, usize), ids: &mut Vec<u32>, kept: &mut Vec<f32>) {
    widest(Keep { wish: Best { key, n_equal }, ids: Some(ids), kept });
}

/// Keeps the values of at least `low` and below `above`.
pub fn keep_between(low: f32, above: f32, kept: &mut Vec<f32>) {
    widest(Keep { wish: Between { low, above }, ids: None, kept });
}

/// Adds the values of at least `low` and below `above` to `into`, in order.
pub(super) struct Range<'a> {
    pub(super) values: &'a [f32],
    pub(super) wish: Between,
    pub(super) into: &'a mut Vec<f32>,
}

impl Scan for Range<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pack>(mut self) {
        for block in self.values.chunks(BLOCK) {
            self.into.reserve(BLOCK + LANES);
            let (rows, rest) = block.as_chunks::<LANES>();
            for row in rows {
                // SAFETY: as in `List`.
                unsafe { self.put::<P>(row, u32::MAX) };
            }
            if !rest.is_empty() {
                let (row, counts) = padded(rest);
                // SAFETY: as above.
                unsafe { self.put::<P>(&row, counts) };
            }
        }
    }
}

impl Range<'_> {
    /// Adds what is wanted of a row.
    ///
    /// # Safety
    /// The processor has the registers of `P`, and there is room for sixteen more.
    #[inline(always)]
    unsafe fn put<P: Pack>(&mut self, row: &[f32; LANES], counts: u32) {
        let n = self.into.len();
        // SAFETY: there is room for sixteen, of which the first ones then count.
        unsafe {
            let mask = self.wish.mask::<P>(row) & counts;
            P::pack(bits(row), mask, self.into.as_mut_ptr().add(n).cast());
            self.into.set_len(n + mask.count_ones() as usize);
        }
    }
}

/// Adds the values of at least `low` and below `above` to `into`, in order.
pub fn collect_between(values: &[f32], low: f32, above: f32, into: &mut Vec<f32>) {
    widest(Range { values, wish: Between { low, above }, into });
}
