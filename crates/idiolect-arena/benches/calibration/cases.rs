//! Populations of which some rivals are revealed, and what comes of the reply.

use idiolect_uniqueness::chance::{Calibration, Chance};

/// How many others answer, besides all that there are.
const POPULATIONS: [usize; 4] = [4, 9, 19, 29];
/// Numbers of rivals that are revealed.
pub(crate) const SEEN: [usize; 8] = [0, 1, 2, 4, 8, 12, 20, 30];
/// Draws of each population.
const DRAWS: usize = 8;

/// The replies of one file as an encoder sees them, and the validators' own.
pub(crate) struct Setting<'a> {
    pub(crate) distances: &'a [Vec<Vec<f32>>],
    pub(crate) truth: &'a [Vec<Vec<f32>>],
    pub(crate) bound: f32,
}

/// One reply among some others.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) prompt: usize,
    pub(crate) n_seen: usize,
    pub(crate) n_unseen: usize,
    /// To the nearest that is seen.
    pub(crate) distance: Option<f32>,
    pub(crate) masked: bool,
    /// Whether all the others answer.
    pub(crate) whole: bool,
}

impl Case {
    pub(crate) fn chance(&self, calibration: &Calibration, bound: f32) -> Chance {
        calibration.masked(self.distance, bound, self.n_seen, self.n_unseen)
    }

    /// Says whether the validators' own encoder leaves nothing to predict.
    pub(crate) fn is_certain(&self, bound: f32) -> bool {
        self.n_unseen == 0 || self.distance.is_some_and(|d| d <= bound)
    }
}

/// Returns the least distance to some others.
pub(crate) fn nearest(row: &[f32], others: &[usize]) -> Option<f32> {
    others.iter().filter_map(|&j| row.get(j).copied()).min_by(f32::total_cmp)
}

impl Setting<'_> {
    /// Draws populations of each size for each reply, and reveals some of each.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut random = 1;
        let mut cases = Vec::new();
        for (prompt, (distances, truth)) in self.distances.iter().zip(self.truth).enumerate() {
            for i in 0..distances.len() {
                let mut others: Vec<usize> = (0..distances.len()).filter(|&j| j != i).collect();
                let n_others = others.len();
                let sizes = POPULATIONS.into_iter().filter(|&n| n < n_others).chain([n_others]);
                for size in sizes.flat_map(|size| [size; DRAWS]) {
                    shuffle(&mut others, &mut random);
                    let population = &others[..size];
                    let masked = nearest(&truth[i], population).is_none_or(|d| d <= self.bound);
                    cases.extend(SEEN.into_iter().filter(|&n| n <= size).map(|n_seen| Case {
                        prompt,
                        n_seen,
                        n_unseen: size - n_seen,
                        distance: nearest(&distances[i], &population[..n_seen]),
                        masked,
                        whole: size == n_others,
                    }));
                }
            }
        }
        cases
    }
}

pub(crate) fn shuffle(items: &mut [usize], random: &mut u64) {
    for i in (1..items.len()).rev() {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, usize::try_from(*random >> 33).unwrap_or(0) % (i + 1));
    }
}
