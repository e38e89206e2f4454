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
/// Bits of a key that one pass looks at.
const BITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

/// Finds cuts; keeps its space.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cutter {
    active: Vec<u32>,
    weights: Vec<f64>,
    counts: Vec<u32>,
}

/// Returns bits that order as `total_cmp` does.
const fn rank(key: f32) -> u32 {
    let bits = key.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

impl Cutter {
    /// Returns the shortest prefix that meets the goal, in the order of falling keys and, among equal ones, of rising
    /// index. `None` when all of them together don't meet it, or just do.
    pub(crate) fn cut(&mut self, keys: &[f32], weight: impl Fn(usize) -> f64, goal: Goal) -> Option<Cut> {
        let n = keys.len();
        let Self { active, weights, counts } = self;
        active.clear();
        let mut reached = 0.0;
        let mut n_above = 0;
        let everything = u32::try_from(n).ok()?;
        if n <= FEW {
            active.extend(0..everything);
        } else {
            for (pass, (shift, bits)) in BITS.into_iter().enumerate() {
                let buckets = 1usize << bits;
                weights.clear();
                weights.resize(buckets, 0.0);
                counts.clear();
                counts.resize(buckets, 0);
                let bucket = |i: u32| (rank(keys[i as usize]) >> shift) as usize & (buckets - 1);
                let mut count = |i: u32| {
                    let bucket = bucket(i);
                    weights[bucket] += weight(i as usize);
                    counts[bucket] += 1;
                };
                if pass == 0 {
                    (0..everything).for_each(&mut count);
                } else {
                    active.iter().copied().for_each(&mut count);
                }
                // Rounding may leave the goal unmet by what met it in the pass before: then the last bucket it is.
                let mut last = None;
                for bucket in (0..buckets).rev().filter(|bucket| counts[*bucket] > 0) {
                    last = Some((bucket, reached, n_above));
                    if goal.is_met_by(reached + weights[bucket]) {
                        break;
                    }
                    reached += weights[bucket];
                    n_above += counts[bucket] as usize;
                    if pass == 0 && n_above == n {
                        return None;
                    }
                }
                let found;
                (found, reached, n_above) = last?;
                if pass == 0 {
                    active.extend((0..everything).filter(|i| bucket(*i) == found));
                } else {
                    active.retain(|i| bucket(*i) == found);
                }
                if active.len() <= FEW {
                    break;
                }
            }
        }
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
        if n_above + at + 1 >= n {
            return None;
        }
        let key = keys[active[at] as usize];
        let n_equal = active[..=at].iter().filter(|i| rank(keys[**i as usize]) == rank(key)).count();
        Some(Cut { key, n_equal })
    }
}

impl Cut {
    /// Returns a test that says of each key, asked in the order of their indices, whether it is kept.
    pub(crate) fn keeps(self) -> impl FnMut(f32) -> bool {
        let mut left = self.n_equal;
        move |key| match key.total_cmp(&self.key) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => {
                let keeps = left > 0;
                left = left.saturating_sub(1);
                keeps
            }
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
