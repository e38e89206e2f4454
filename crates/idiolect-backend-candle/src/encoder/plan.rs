//! Which texts are encoded in one pass, and on which threads.

/// Tokens of a pass: more stop paying, and cost memory.
const PASS: usize = 128;

/// How much longer passes on threads of their own may take than an even split of the work.
const UNEVEN: f64 = 1.15;

/// Groups of texts, by their numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Each group on one thread, several at a time: threads never wait for each other.
    Apart(Vec<Vec<usize>>),
    /// One group after the other, each on all threads.
    Together(Vec<Vec<usize>>),
}

/// Plans passes over texts of these lengths.
pub(super) fn plan(lens: &[usize], threads: usize) -> Plan {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lens[*i]));
    let total: usize = lens.iter().sum();
    let wanted = total.div_ceil(PASS).max(1).next_multiple_of(threads).min(lens.len());
    // The longest text first, each to the least group.
    let groups = deal(&order, wanted, |i| lens[i]);
    let loads: Vec<usize> = groups.iter().map(|group| group.iter().map(|i| lens[*i]).sum()).collect();
    let by_load: Vec<usize> = (0..groups.len()).collect();
    let shares = deal(&by_load, threads, |i| loads[i]);
    let longest = shares.iter().map(|share| share.iter().map(|i| loads[*i]).sum::<usize>()).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "numbers of tokens are small")]
    if longest as f64 * threads as f64 <= total as f64 * UNEVEN {
        return Plan::Apart(groups);
    }
    let passes = total.div_ceil(4 * PASS).clamp(1, lens.len().max(1));
    Plan::Together(deal(&order, passes, |i| lens[i]))
}

/// Deals things out to `n` places, each to the one with the least so far; places that get nothing are left out.
fn deal(things: &[usize], n: usize, size: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut places = vec![(0, Vec::new()); n];
    for thing in things {
        if let Some(least) = places.iter_mut().min_by_key(|(sum, _)| *sum) {
            least.0 += size(*thing);
            least.1.push(*thing);
        }
    }
    places.into_iter().map(|(_, place)| place).filter(|place| !place.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn many_texts_are_encoded_on_threads_of_their_own() {
        let Plan::Apart(groups) = plan(&[30; 32], 2) else { panic!("they split evenly") };
        assert_eq!(groups.len(), 8);
        assert!(groups.iter().all(|group| group.len() == 4));
        assert!(matches!(plan(&[200, 200], 2), Plan::Apart(groups) if groups.len() == 2));
        assert!(matches!(plan(&[200; 3], 1), Plan::Apart(groups) if groups.len() == 3));
    }

    #[test]
    fn few_texts_are_encoded_by_all_threads() {
        assert_eq!(plan(&[30], 2), Plan::Together(vec![vec![0]]));
        assert_eq!(plan(&[100, 300], 2), Plan::Together(vec![vec![1, 0]]));
        assert!(matches!(plan(&[200; 3], 2), Plan::Together(groups) if groups.len() == 2));
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_group(lens in prop::collection::vec(1..513usize, 0..100), threads in 1..9usize) {
            let (Plan::Apart(groups) | Plan::Together(groups)) = plan(&lens, threads);
            let mut all: Vec<usize> = groups.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lens.len()).collect::<Vec<_>>());
            for group in groups {
                let tokens: usize = group.iter().map(|i| lens[*i]).sum();
                prop_assert!(tokens <= 3 * 512, "{tokens} tokens in one pass");
            }
        }
    }
}
