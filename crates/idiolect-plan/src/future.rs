//! Futures: what may become of a miner, day by day.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::plan::{Chances, Range};

/// Half the width of an interval of 95 %, in standard deviations.
const HALF: f64 = 1.959_963_984_540_054;

/// Everything that a future depends on.
pub(crate) struct Scene<'a> {
    pub(crate) share: Range,
    pub(crate) place: Option<Range>,
    pub(crate) incentives: Option<&'a [f64]>,
    pub(crate) n_miners: f64,
    /// What all miners earn in a day.
    pub(crate) usd_per_day_of_all: f64,
    pub(crate) cost_per_day: f64,
    pub(crate) burn_usd: f64,
    pub(crate) alpha: f64,
    pub(crate) asked_per_day: f64,
    pub(crate) immunity_days: f64,
    pub(crate) registrations_per_day: Option<f64>,
    pub(crate) price_sd_per_day: f64,
    pub(crate) horizon_days: f64,
}

/// What became of a miner.
pub(crate) struct Future {
    /// Net at the end of each day, burn included.
    days: Vec<f64>,
}

impl Future {
    /// Returns the first day on which all is paid for, from 0, on which nothing is earned yet.
    pub(crate) fn break_even_day(&self) -> Option<u32> {
        let at = self.days.iter().position(|net| *net >= 0.0)?;
        u32::try_from(at).ok()
    }

    fn net(&self) -> f64 {
        self.days.last().copied().unwrap_or(0.0)
    }
}

impl Scene<'_> {
    /// Returns the share of its final weight that a newcomer has after some days.
    pub(crate) fn ramp(&self, days: f64) -> f64 {
        1.0 - libm::pow(1.0 - self.alpha, self.asked_per_day * days)
    }

    fn n_days(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 3650")]
        let days = self.horizon_days.round() as usize;
        days
    }

    /// The future in which nothing varies.
    pub(crate) fn certain(&self) -> Future {
        self.future(self.share.value, false, &mut |_| 1.0)
    }

    fn future(&self, share: f64, is_pruned: bool, price: &mut dyn FnMut(usize) -> f64) -> Future {
        let mut days = Vec::with_capacity(self.n_days() + 1);
        let mut net = -self.burn_usd;
        days.push(net);
        for day in 1..=self.n_days() {
            let price = price(day);
            let from = (day - 1) as f64;
            // A place that is lost earns nothing more, and costs nothing more.
            let lasts = if is_pruned { (self.immunity_days - from).clamp(0.0, 1.0) } else { 1.0 };
            // The weight in the middle of what is left of the day.
            let ramp = self.ramp(from + lasts / 2.0);
            net += lasts * (self.usd_per_day_of_all * share * ramp * price - self.cost_per_day);
            days.push(net);
        }
        Future { days }
    }

    /// Whether a miner with this share, or at this place, is among those whose places newcomers take.
    fn is_pruned(&self, share: f64, place: Option<f64>) -> Option<bool> {
        let per_day = self.registrations_per_day?;
        let at = match (place, self.incentives) {
            (_, Some(incentives)) => {
                let own = share * self.ramp(self.immunity_days);
                incentives.partition_point(|other| *other > own) as f64 + 1.0
            }
            (Some(place), None) => place,
            (None, None) => return None,
        };
        Some(per_day > 0.0 && at > self.n_miners - per_day * self.immunity_days.max(1.0))
    }

    pub(crate) fn chances(&self, futures: usize, seed: u64) -> Chances {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut nets, mut days) = (Vec::with_capacity(futures), Vec::with_capacity(futures));
        let (mut n_pruned, mut is_known) = (0_usize, true);
        for _ in 0..futures {
            let z = normal(&mut random);
            // A good draw is a high share and a low place.
            let place = self.place.map(|place| drawn(place, -z).clamp(1.0, self.n_miners));
            let share = match (place, self.incentives) {
                (Some(place), Some(incentives)) if self.by_place() => incentive_at(incentives, place),
                _ => drawn(self.share, z).clamp(0.0, 1.0),
            };
            let is_pruned = self.is_pruned(share, place);
            is_known &= is_pruned.is_some();
            n_pruned += usize::from(is_pruned == Some(true));
            let mut price = 1.0;
            let future = self.future(share, is_pruned == Some(true), &mut |_| {
                price *= libm::exp(self.price_sd_per_day * normal(&mut random));
                price
            });
            nets.push(future.net());
            days.push(future.break_even_day());
        }
        let n = futures.max(1) as f64;
        let paid_back = nets.iter().filter(|net| **net >= 0.0).count() as f64 / n;
        let mean = nets.iter().sum::<f64>() / n;
        nets.sort_by(f64::total_cmp);
        // Never is later than any day.
        days.sort_by_key(|day| day.unwrap_or(u32::MAX));
        let day = |at: f64| days.get(index(at, days.len())).copied().flatten();
        let net = |at: f64| nets.get(index(at, nets.len())).copied().unwrap_or(0.0);
        Chances {
            futures,
            paid_back,
            pruned: (is_known && futures > 0).then(|| n_pruned as f64 / n),
            net_usd: Range { value: mean, low: net(0.025), high: net(0.975) },
            break_even_day_p50: day(0.5),
            break_even_day_p05: day(0.05),
            break_even_day_p95: day(0.95),
        }
    }

    /// Whether the share was read off the incentives.
    fn by_place(&self) -> bool {
        match (self.place, self.incentives) {
            (Some(place), Some(incentives)) => incentive_at(incentives, place.value) == self.share.value,
            _ => false,
        }
    }
}

fn index(at: f64, n: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
    let index = (at * n as f64) as usize;
    index.min(n.saturating_sub(1))
}

/// A value `z` standard deviations from the middle of a range, whose two sides may differ.
fn drawn(range: Range, z: f64) -> f64 {
    let side = if z >= 0.0 { range.high - range.value } else { range.value - range.low };
    range.value + z * side / HALF
}

/// A draw of the normal distribution (Box and Muller 1958).
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let uniform = |random: &mut ChaCha8Rng| (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0;
    let (a, b) = (uniform(random), uniform(random));
    libm::sqrt(-2.0 * libm::log(a)) * libm::cos(2.0 * std::f64::consts::PI * b)
}

/// The share of the miner at a place, between two places in proportion; behind the last, nothing.
pub(crate) fn incentive_at(incentives: &[f64], place: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "places are few")]
    let before = (place.max(1.0) - 1.0).floor() as usize;
    let of = |nth: usize| incentives.get(nth).copied().unwrap_or(0.0);
    let part = place.max(1.0) - 1.0 - before as f64;
    of(before) + (of(before + 1) - of(before)) * part
}
