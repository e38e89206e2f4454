//! Finding where a sorted list would be cut, without sorting it.

/// The best keys that are kept: all above `key`, and the first `n_equal` of those equal to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    pub(crate) key: f32,
    pub(crate) n_equal: usize,
}

/// How far a cut goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// The weight to reach.
    pub(crate) weight: f64,
    /// It must be passed, not just reached.
    pub(crate) exceeds: bool,
}

impl Goal {
    pub(crate) const fn is_met_by(self, weight: f64) -> bool {
        weight > self.weight || (!self.exceeds && weight >= self.weight)
    }
}

/// So few entries are sorted instead.
const FEW: usize = 96;
/// Even steps of the first pass.
const STEPS: usize = 1024;
/// Bits of a key that each further pass looks at: where they begin and how many.
const BITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

/// Finds cuts; keeps its space.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cutter {
    active: Vec<u32>,
    before: Vec<u32>,
    buckets: Vec<Bucket>,
}

/// Returns bits that order as `total_cmp` does.
const fn rank(key: f32) -> u32 {
    let bits = key.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

impl Cutter {
    /// Returns the shortest prefix that meets the goal, in the order of falling keys and, among equal ones, of rising
    /// index. `None` when all of them together don't meet it, or just do. No key may be NaN.
    pub(crate) fn cut(&mut self, keys: &[f32], weight: impl Fn(usize) -> f64, goal: Goal) -> Option<Cut> {
        let n = u32::try_from(keys.len()).ok()?;
        let mut search =
            Search { active: &mut self.active, buckets: &mut self.buckets, goal, reached: 0.0, n_above: 0 };
        search.active.clear();
        if keys.len() <= FEW {
            search.active.extend(0..n);
        } else {
            // Even steps between the greatest and the least key spread most lists well.
            let greatest = keys.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let least = keys.iter().copied().fold(f32::INFINITY, f32::min);
            let steps = (STEPS - 1) as f32 / (greatest - least);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "what is no number counts as 0"
            )]
            let step = |i: u32| STEPS - 1 - (((greatest - keys[i as usize]) * steps) as usize).min(STEPS - 1);
            if !search.narrow(0..n, STEPS, step, &weight) {
                return None;
            }
            // Those that don't are told apart by their bits.
            for (shift, bits) in BITS {
                if search.active.len() <= FEW {
                    break;
                }
                std::mem::swap(search.active, &mut self.before);
                let digit = |i: u32| (rank(keys[i as usize]) >> shift) as usize & ((1 << bits) - 1);
                search.narrow(self.before.iter().copied(), 1 << bits, digit, &weight);
            }
        }
        let Search { active, mut reached, n_above, .. } = search;
        if active.len() <= FEW {
            active.sort_unstable_by(|a, b| keys[*b as usize].total_cmp(&keys[*a as usize]).then(a.cmp(b)));
        }
        // More than a few that went through every pass have one key, and are in the order of their indices.
        let mut at = None;
        for (i, index) in active.iter().enumerate() {
            reached += weight(*index as usize);
            if goal.is_met_by(reached) {
                at = Some(i);
                break;
            }
        }
        let at = at.unwrap_or(active.len().checked_sub(1)?);
        if n_above + at + 1 >= keys.len() {
            return None;
        }
        let key = keys[active[at] as usize];
        let n_equal = active[..=at].iter().filter(|i| rank(keys[**i as usize]) == rank(key)).count();
        Some(Cut { key, n_equal })
    }
}

/// A search for the entry that meets a goal.
struct Search<'a> {
    /// The entries among which it is, by rising index.
    active: &'a mut Vec<u32>,
    buckets: &'a mut Vec<Bucket>,
    goal: Goal,
    /// The weight of all entries above the active ones.
    reached: f64,
    /// How many those are.
    n_above: usize,
}

/// Entries whose keys are near each other.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    weight: f64,
    n: usize,
}

impl Search<'_> {
    /// Finds the bucket in which the goal is met, counted from the last one down, and makes its entries the active ones.
    /// False when the entries above and all of these together don't meet it. (Among entries that an earlier pass found,
    /// only rounding can make them fail: then the last bucket counts.)
    fn narrow(
        &mut self,
        entries: impl Iterator<Item = u32> + Clone,
        n_buckets: usize,
        bucket: impl Fn(u32) -> usize,
        weight: impl Fn(usize) -> f64,
    ) -> bool {
        self.buckets.clear();
        self.buckets.resize(n_buckets, Bucket::default());
        for i in entries.clone() {
            let bucket = &mut self.buckets[bucket(i)];
            bucket.weight += weight(i as usize);
            bucket.n += 1;
        }
        let mut found = None;
        let (mut reached, mut n_above) = (self.reached, self.n_above);
        let mut is_met = false;
        for (at, bucket) in self.buckets.iter().enumerate().rev().filter(|(_, bucket)| bucket.n > 0) {
            found = Some(at);
            (self.reached, self.n_above) = (reached, n_above);
            reached += bucket.weight;
            n_above += bucket.n;
            is_met = self.goal.is_met_by(reached);
            if is_met {
                break;
            }
        }
        self.active.clear();
        self.active.extend(entries.filter(|i| Some(bucket(*i)) == found));
        is_met
    }
}

impl Cut {
    /// Returns a test that says of each key, asked in the order of their indices, whether it is kept.
    pub(crate) fn keeps(self) -> impl FnMut(f32) -> bool {
        let mut left = self.n_equal;
        let border = rank(self.key);
        move |key| {
            let rank = rank(key);
            if rank == border {
                let keeps = left > 0;
                left = left.saturating_sub(1);
                return keeps;
            }
            rank > border
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(keys: &[f32], weights: &[u32], goal: Goal) -> Vec<usize> {
        let cut = Cutter::default().cut(keys, |i| f64::from(weights[i]), goal);
        let Some(cut) = cut else { return (0..keys.len()).collect() };
        let mut keeps = cut.keeps();
        (0..keys.len()).filter(|i| keeps(keys[*i])).collect()
    }

    fn by_sorting(keys: &[f32], weights: &[u32], goal: Goal) -> Vec<usize> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]));
        let mut reached = 0.0;
        let mut n = order.len();
        for (i, index) in order.iter().enumerate() {
            reached += f64::from(weights[*index]);
            if goal.is_met_by(reached) {
                n = i + 1;
                break;
            }
        }
        order.truncate(n);
        order.sort_unstable();
        order
    }

    /// Keys of every size, many of them equal.
    fn keys() -> impl Strategy<Value = Vec<f32>> {
        let key = prop_oneof![
            4 => -30f32..30.0,
            2 => 10f32..10.001,
            2 => (0u32..4).prop_map(|k| k as f32),
            1 => any::<f32>().prop_filter("a number", |k| !k.is_nan()),
            1 => prop_oneof![Just(0.0f32), Just(-0.0f32)],
        ];
        prop::collection::vec(key, 1..2000)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_cut_is_where_sorting_would_cut(
            keys in keys(),
            seed: u64,
            share in 0f64..1.1,
            exceeds: bool,
        ) {
            // Whole weights, so that the order of additions does not matter.
            let weights: Vec<u32> =
                (0..keys.len() as u64).map(|i| (seed.wrapping_mul(2 * i + 1) >> 33) as u32 % 5).collect();
            let total: u32 = weights.iter().sum();
            let goal = Goal { weight: share * f64::from(total), exceeds };
            prop_assert_eq!(kept(&keys, &weights, goal), by_sorting(&keys, &weights, goal));
        }

        #[test]
        fn equal_keys_are_cut_by_index(n in 1usize..3000, k in 1usize..3000) {
            let keys = vec![1.5; n];
            let goal = Goal { weight: k as f64, exceeds: false };
            prop_assert_eq!(kept(&keys, &vec![1; n], goal), (0..k.min(n)).collect::<Vec<_>>());
        }
    }
}
