//! The tokens that are left, from a whole vocabulary down to one.

use idiolect_kernels::scan;

use crate::cut::{Cut, Cutter, Goal};

/// Below this temperature only the likeliest token is left, as everywhere.
pub(crate) const COLDEST: f32 = 1e-5;

/// What is left of a vocabulary: all of it (as it came, or changed), or a list.
///
/// Nothing is sorted. A list is in the order of token ids; a temperature is a factor that waits until somebody asks for
/// weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidates {
    /// All logits after changes, while `is_owned`.
    owned: Vec<f32>,
    is_owned: bool,
    /// A few tokens that are impossible, in order, while nothing else was changed and all is there.
    banned: Vec<u32>,
    /// The greatest logit of each block, while `is_fresh`; but for blocks of tokens that are in `touched`.
    maxima: Vec<f32>,
    /// Where logits were changed.
    touched: Vec<u32>,
    /// The greatest logit, while `is_fresh`.
    greatest: f32,
    is_fresh: bool,
    is_list: bool,
    ids: Vec<u32>,
    kept: Vec<f32>,
    /// Logits are multiplied by this.
    scale: f32,
    weights: Vec<f32>,
    /// The sum of all weights, where it is known; `sums` are then those of its parts.
    total: Option<f64>,
    sums: Vec<f64>,
    /// For which greatest logit and scale `sums` are those of the whole vocabulary, but for the parts in `stale`.
    summed: Option<(f32, f32)>,
    stale: Vec<usize>,
    part: Vec<f64>,
    keys: Vec<f32>,
    cutter: Cutter,
}

/// A token and its share of all weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) token: u32,
    pub(crate) probability: f64,
}

impl Candidates {
    /// Makes room for changes to `n` logits.
    pub(crate) fn reserve_changes(&mut self, n: usize) {
        self.touched.reserve(n);
    }

    /// Begins with a whole vocabulary and returns its greatest logit and the sum of all weights, of which the greatest is 1.
    pub(crate) fn begin(&mut self, logits: &[f32]) -> (f32, f64) {
        self.is_owned = false;
        self.is_list = false;
        self.is_fresh = true;
        self.scale = 1.0;
        self.banned.clear();
        self.touched.clear();
        self.stale.clear();
        let (greatest, total) = scan::begin(logits, &mut self.maxima, &mut self.sums);
        self.greatest = greatest;
        self.summed = Some((greatest, 1.0));
        self.total = Some(total);
        (greatest, total)
    }

    /// Takes every change back.
    #[expect(clippy::float_cmp, reason = "no temperature is one exact value")]
    pub(crate) fn begin_again(&mut self) {
        if self.is_owned || self.is_list || !self.banned.is_empty() || self.scale != 1.0 {
            self.is_owned = false;
            self.is_list = false;
            self.is_fresh = false;
            self.banned.clear();
            self.scale = 1.0;
            self.total = None;
            self.summed = None;
        }
    }

    /// Returns the sum of all weights; the greatest has the weight 1.
    pub(crate) fn total(&mut self, logits: &[f32]) -> f64 {
        self.refresh(logits);
        if let Some(total) = self.total {
            return total;
        }
        let (mut sums, mut part) = (std::mem::take(&mut self.sums), std::mem::take(&mut self.part));
        let (greatest, scale) = (self.greatest, self.scale);
        if self.is_list || self.summed != Some((greatest, scale)) {
            scan::sum_exp(self.values(logits), greatest, scale, &mut sums);
            self.stale.clear();
            if !self.is_list {
                self.stale.extend(self.banned.iter().map(|token| *token as usize / scan::CHUNK));
                self.stale.dedup();
            }
        }
        // Only what was changed is added up again; in the same order, so that the bits are the same.
        let mut changed = std::mem::take(&mut self.weights);
        for chunk in &self.stale {
            let values = self.values(logits).chunks(scan::CHUNK).nth(*chunk).unwrap_or_default();
            changed.clear();
            changed.extend_from_slice(values);
            self.ban_in(&mut changed, chunk * scan::CHUNK);
            if let Some(sum) = sums.get_mut(*chunk) {
                *sum = scan::sum_exp(&changed, greatest, scale, &mut part);
            }
        }
        self.weights = changed;
        let total = sums.iter().fold(0.0, |total, sum| total + sum);
        (self.sums, self.part) = (sums, part);
        self.stale.clear();
        self.summed = (!self.is_list).then_some((greatest, scale));
        self.total = Some(total);
        total
    }

    /// Makes tokens impossible.
    pub(crate) fn ban(&mut self, logits: &[f32], tokens: &[u32]) {
        if tokens.is_empty() {
            return;
        }
        if self.is_list || self.is_owned || self.banned.len() + tokens.len() > FEW_BANNED {
            let mut edit = self.edit(logits);
            tokens.iter().for_each(|token| edit.ban(*token));
            return;
        }
        // A few need no copy of the whole vocabulary.
        self.total = None;
        for token in tokens.iter().filter(|token| (**token as usize) < logits.len()) {
            if let Err(at) = self.banned.binary_search(token) {
                self.banned.insert(at, *token);
                self.touched.push(*token);
            }
        }
    }

    /// Makes banned tokens impossible in a part of the vocabulary that begins with the token `first`.
    fn ban_in(&self, values: &mut [f32], first: usize) {
        let begin = self.banned.partition_point(|token| (*token as usize) < first);
        for token in &self.banned[begin..] {
            match values.get_mut(*token as usize - first) {
                Some(value) => *value = f32::NEG_INFINITY,
                None => break,
            }
        }
    }

    /// Copies the vocabulary where all of it is there and tokens are banned, so that it can be read as it is.
    fn own(&mut self, logits: &[f32]) {
        if !self.is_list && !self.banned.is_empty() {
            self.copy(logits);
        }
    }

    fn copy(&mut self, logits: &[f32]) {
        self.owned.clear();
        self.owned.extend_from_slice(logits);
        self.is_owned = true;
        for token in self.banned.drain(..) {
            self.owned[token as usize] = f32::NEG_INFINITY;
        }
    }

    /// Changes logits, one token at a time. Temperature comes first where it came first.
    pub(crate) fn edit(&mut self, logits: &[f32]) -> Edit<'_> {
        self.total = None;
        let is_list = self.is_list;
        if !is_list && !self.is_owned {
            self.copy(logits);
        }
        let values = if is_list { &mut self.kept } else { &mut self.owned };
        #[expect(clippy::float_cmp, reason = "no temperature is one exact value")]
        if self.scale != 1.0 {
            values.iter_mut().for_each(|value| *value = bounded(*value, *value * self.scale));
            self.scale = 1.0;
            self.is_fresh = false;
            self.summed = None;
        }
        Edit { values, ids: is_list.then_some(&self.ids), touched: &mut self.touched, is_fresh: &mut self.is_fresh }
    }

    /// Makes `greatest` and `maxima` true again; says whether anything is left.
    fn refresh(&mut self, logits: &[f32]) -> bool {
        if !self.is_fresh || self.touched.len() * scan::BLOCK > self.values(logits).len() {
            self.own(logits);
            self.summed = None;
            let mut maxima = std::mem::take(&mut self.maxima);
            self.greatest = scan::block_maxima(self.values(logits), &mut maxima);
            self.maxima = maxima;
        } else if !self.touched.is_empty() {
            let touched = std::mem::take(&mut self.touched);
            let mut last = usize::MAX;
            for at in &touched {
                let block = *at as usize / scan::BLOCK;
                if block != last {
                    self.maxima[block] = self.maximum_of_block(logits, block);
                    last = block;
                    let chunk = *at as usize / scan::CHUNK;
                    if self.stale.last() != Some(&chunk) {
                        self.stale.push(chunk);
                    }
                }
            }
            self.touched = touched;
            self.greatest = self.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        }
        self.touched.clear();
        self.is_fresh = true;
        self.greatest > f32::NEG_INFINITY
    }

    fn maximum_of_block(&self, logits: &[f32], block: usize) -> f32 {
        let values = self.values(logits);
        let first = block * scan::BLOCK;
        let values = &values[first..values.len().min(first + scan::BLOCK)];
        let mut changed = [f32::NEG_INFINITY; scan::BLOCK];
        changed[..values.len()].copy_from_slice(values);
        if !self.is_list {
            self.ban_in(&mut changed, first);
        }
        changed.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Divides by a temperature.
    pub(crate) fn cool(&mut self, logits: &[f32], temperature: f32) {
        if temperature < COLDEST {
            if let Some(choice) = self.likeliest(logits) {
                self.keep_only(choice.token);
            }
        } else {
            // Bounded, so that no pile of temperatures makes zero or infinity of it.
            self.scale = (self.scale / temperature).clamp(1e-30, 1e30);
            self.total = None;
        }
    }

    /// Divides by a temperature between `coldest` and `hottest`, by the entropy.
    pub(crate) fn cool_by_entropy(&mut self, logits: &[f32], coldest: f32, hottest: f32, exponent: f32) {
        if !self.refresh(logits) {
            return;
        }
        self.own(logits);
        let values = self.values(logits);
        let n = values.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
        if n < 2 {
            return;
        }
        let (sum, moment) = scan::sum_exp_moment(values, self.greatest, self.scale);
        #[expect(clippy::cast_precision_loss, reason = "a vocabulary has fewer than 2^53 tokens")]
        let most = (n as f64).ln();
        let share = ((sum.ln() - moment / sum) / most).clamp(0.0, 1.0);
        #[expect(clippy::cast_possible_truncation, reason = "a share between 0 and 1")]
        let share = share.powf(f64::from(exponent)) as f32;
        self.cool(logits, coldest + (hottest - coldest) * share);
    }

    /// Keeps the k likeliest.
    pub(crate) fn keep_best(&mut self, logits: &[f32], k: usize) {
        if k >= self.values(logits).len() || !self.refresh(logits) {
            return;
        }
        if !self.is_list {
            let threshold = if k <= self.maxima.len() {
                // Each block has one token that reaches its maximum, so k tokens reach the k-th greatest maximum.
                self.keys.clear();
                self.keys.extend_from_slice(&self.maxima);
                *self.keys.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
            } else {
                f32::MIN
            };
            self.list_from(logits, threshold);
        }
        #[expect(clippy::cast_precision_loss, reason = "k is at most the number of tokens")]
        let goal = Goal { weight: k as f64, exceeds: false };
        if let Some(cut) = self.cutter.cut(&self.kept, |_| 1.0, goal) {
            self.keep_cut(cut);
        }
    }

    /// Keeps the likeliest that together reach a share of all probability.
    pub(crate) fn keep_mass(&mut self, logits: &[f32], share: f32) {
        if !self.refresh(logits) {
            return;
        }
        let total = self.total(logits);
        let goal = Goal { weight: f64::from(share) * total, exceeds: false };
        if self.is_list {
            return self.keep_listed(goal, f32::MIN);
        }
        // All tokens below this weight weigh less than what may be missing, even together.
        #[expect(clippy::cast_precision_loss, reason = "a vocabulary has fewer than 2^53 tokens")]
        let least = ((1.0 - f64::from(share)).max(1e-9) * total / logits.len() as f64).min(1.0);
        #[expect(clippy::cast_possible_truncation, reason = "a small logarithm")]
        let deepest = -least.ln() as f32;
        // Mostly a few are enough that are not much less likely than the likeliest.
        let shallow = self.at_depth(SHALLOW.min(deepest));
        if self.list_few_from(logits, shallow) {
            scan::exp_into(&self.kept, self.greatest, self.scale, &mut self.weights);
            if scan::sum(&self.weights) >= goal.weight * MARGIN {
                return self.keep_listed(goal, shallow);
            }
            self.is_list = false;
        }
        let mut keys = std::mem::take(&mut self.keys);
        let border = self.narrow(self.allowed(logits), Border::above(self.at_depth(deepest)), goal, &mut keys);
        match self.cut(&keys, border, goal) {
            Some(cut) => self.list_best(logits, cut),
            None => self.list_from(logits, border.low),
        }
        self.keys = keys;
    }

    /// Keeps the likeliest of a list that reach a weight; none lies below `low`.
    fn keep_listed(&mut self, goal: Goal, low: f32) {
        let mut keys = std::mem::take(&mut self.keys);
        let border = self.narrow(std::iter::once(&self.kept[..]), Border::above(low), goal, &mut keys);
        match self.cut(&keys, border, goal) {
            Some(cut) => self.keep_cut(cut),
            None => self.keep_from(&[], border.low),
        }
        self.keys = keys;
    }

    /// Returns the logit that lies so far below the greatest one after the temperature.
    fn at_depth(&self, depth: f32) -> f32 {
        (self.greatest - depth / self.scale).max(f32::MIN)
    }

    /// Narrows down where the last one of the likeliest is that reach a weight, by sums over all values and then over ever
    /// fewer, so that only those near it need to be put in order. These are left in `keys`.
    fn narrow<'a>(
        &self,
        parts: impl Iterator<Item = &'a [f32]> + Clone,
        mut border: Border,
        goal: Goal,
        keys: &mut Vec<f32>,
    ) -> Border {
        let (greatest, scale) = (self.greatest, self.scale);
        keys.clear();
        if parts.clone().map(<[f32]>::len).sum::<usize>() <= FEW {
            parts.for_each(|part| keys.extend_from_slice(part));
        } else {
            // Few are much less likely than the likeliest, but those that are may lie very deep.
            let steps = even_steps(greatest, border.low.max(self.at_depth(DEEP)), border.low);
            let mut masses = [0.0; scan::LEVELS];
            for part in parts.clone() {
                let of_part = scan::masses(part, greatest, scale, &steps);
                masses.iter_mut().zip(of_part).for_each(|(mass, of_part)| *mass += of_part);
            }
            border.narrow(&steps, &masses, goal);
            parts.for_each(|part| scan::collect_between(part, border.low, border.above, keys));
        }
        for _ in 0..ROUNDS {
            if keys.len() <= FEW {
                break;
            }
            let steps = even_steps(border.above.min(greatest), border.low, border.low);
            let mut masses = scan::masses(keys, greatest, scale, &steps);
            masses.iter_mut().for_each(|mass| *mass += border.reached);
            border.narrow(&steps, &masses, goal);
            scan::keep_between(border.low, border.above, keys);
        }
        border
    }

    /// Returns where to cut the values that lie in a border.
    fn cut(&mut self, keys: &[f32], border: Border, goal: Goal) -> Option<Cut> {
        scan::exp_into(keys, self.greatest, self.scale, &mut self.weights);
        let Self { cutter, weights, .. } = self;
        cutter.cut(keys, |i| f64::from(weights[i]), Goal { weight: goal.weight - border.reached, ..goal })
    }

    /// Keeps what is at least a fraction as likely as the likeliest.
    pub(crate) fn keep_fraction(&mut self, logits: &[f32], fraction: f32, exclusive: bool) {
        if self.refresh(logits) {
            let threshold = self.greatest + fraction.ln() / self.scale;
            self.keep_from(logits, if exclusive { threshold.next_up().min(self.greatest) } else { threshold });
        }
    }

    /// Keeps what is at most so many standard deviations below the greatest logit.
    pub(crate) fn keep_sigmas(&mut self, logits: &[f32], n: f32) {
        if self.refresh(logits) {
            self.own(logits);
            let sigma = scan::standard_deviation(self.values(logits), self.greatest);
            #[expect(clippy::cast_possible_truncation, reason = "computed in more than the precision of logits")]
            let threshold = (f64::from(self.greatest) - f64::from(n) * sigma) as f32;
            self.keep_from(logits, threshold);
        }
    }

    /// Keeps what is at most so many bits surprising, and the likeliest in any case.
    pub(crate) fn keep_unsurprising(&mut self, logits: &[f32], bits: f32) {
        if self.refresh(logits) {
            let total = self.total(logits);
            #[expect(clippy::cast_possible_truncation, reason = "computed in more than the precision of logits")]
            let below = ((f64::from(bits) * std::f64::consts::LN_2 - total.ln()) / f64::from(self.scale)) as f32;
            self.keep_from(logits, (self.greatest - below).min(self.greatest));
        }
    }

    /// Keeps the tokens whose surprise is nearest to the expected one, until they exceed a share.
    pub(crate) fn keep_typical(&mut self, logits: &[f32], share: f32) {
        if !self.refresh(logits) {
            return;
        }
        if !self.is_list {
            self.list_from(logits, f32::MIN);
        }
        let Self { kept, weights, keys, cutter, greatest, scale, .. } = self;
        let (sum, moment) = scan::sum_exp_moment(kept, *greatest, *scale);
        scan::exp_into(kept, *greatest, *scale, weights);
        // The entropy is ln S - M / S and a token's surprise ln S - d: what is between them is d - M / S.
        #[expect(clippy::cast_possible_truncation, reason = "of the size of logits")]
        let expected = (moment / sum) as f32;
        keys.clear();
        keys.extend(kept.iter().map(|logit| -((logit - *greatest) * *scale - expected).abs()));
        let goal = Goal { weight: f64::from(share) * sum, exceeds: true };
        if let Some(cut) = cutter.cut(keys, |i| f64::from(weights[i]), goal) {
            let mut keeps = cut.keeps();
            let keys = std::mem::take(keys);
            self.retain(|i, _| keeps(keys[i]));
            self.keys = keys;
        }
    }

    /// Drops all tokens of at least a probability but the least likely of them, if there are two.
    pub(crate) fn drop_top_choices(&mut self, logits: &[f32], threshold: f32) {
        if !self.refresh(logits) {
            return;
        }
        let bar = f64::from(threshold) * self.total(logits);
        if !self.is_list {
            self.list_from(logits, f32::MIN);
        }
        let mut weights = std::mem::take(&mut self.weights);
        scan::exp_into(&self.kept, self.greatest, self.scale, &mut weights);
        let mut n_likely = 0;
        let mut spared = 0;
        for (i, weight) in weights.iter().enumerate() {
            if f64::from(*weight) >= bar {
                // Of equal ones the last is the least likely.
                if n_likely == 0 || self.kept[i] <= self.kept[spared] {
                    spared = i;
                }
                n_likely += 1;
            }
        }
        if n_likely >= 2 {
            self.retain(|i, _| f64::from(weights[i]) < bar || i == spared);
        }
        self.weights = weights;
    }

    /// Keeps as many of the likeliest as mirostat 1 computes from how the likeliest hundred fall off.
    pub(crate) fn keep_by_slope(&mut self, logits: &[f32], mu: f32) {
        #[expect(clippy::cast_precision_loss, reason = "a vocabulary has fewer than 2^53 tokens")]
        let n_vocabulary = logits.len() as f64;
        if !self.refresh(logits) {
            return;
        }
        let mut best = std::mem::take(&mut self.keys);
        best.clear();
        // As in `keep_best`: a hundred blocks have a hundred tokens that reach the hundredth maximum.
        best.extend_from_slice(&self.maxima);
        let threshold = if best.len() > SLOPE {
            *best.select_nth_unstable_by(SLOPE - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        best.clear();
        self.own(logits);
        let values = self.values(logits).iter().copied();
        best.extend(values.filter(|logit| *logit >= threshold && *logit > f32::NEG_INFINITY));
        if best.len() > SLOPE {
            best.select_nth_unstable_by(SLOPE, |a, b| b.total_cmp(a));
            best.truncate(SLOPE);
        }
        best.sort_unstable_by(|a, b| b.total_cmp(a));
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, pair) in (0u32..).zip(best.windows(2)) {
            let t = ((f64::from(i) + 2.0) / (f64::from(i) + 1.0)).ln();
            let b = f64::from(pair[0] - pair[1]) * f64::from(self.scale);
            products += t * b;
            squares += t * t;
        }
        self.keys = best;
        if squares == 0.0 {
            return;
        }
        let s = products / squares;
        let epsilon = s - 1.0;
        let k = (epsilon * f64::from(mu).exp2() / (1.0 - n_vocabulary.powf(-epsilon))).powf(1.0 / s);
        // A flat head (s near 0) makes k infinite, or no number: nothing is cut then.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a small number")]
        if k.is_finite() && k < n_vocabulary {
            self.keep_best(logits, (k as usize).max(1));
        }
    }

    /// Returns the likeliest token; of equal ones that with the lowest id.
    pub(crate) fn likeliest(&mut self, logits: &[f32]) -> Option<Choice> {
        self.refresh(logits);
        self.own(logits);
        let at = scan::first_greatest(self.values(logits), &self.maxima, self.greatest)?;
        Some(Choice { token: self.id(at), probability: 1.0 })
    }

    /// Chooses a token by its probability; `fraction` is a number in [0, 1).
    pub(crate) fn choose(&mut self, logits: &[f32], fraction: f64) -> Option<Choice> {
        if !self.refresh(logits) {
            return None;
        }
        let total = self.total(logits);
        self.own(logits);
        let mut weights = std::mem::take(&mut self.weights);
        let values = self.values(logits);
        let mut left = fraction * total;
        // The chunk first, then the token in it.
        let mut at = None;
        for (chunk, (sum, part)) in self.sums.iter().zip(values.chunks(scan::CHUNK)).enumerate() {
            if left < *sum {
                scan::exp_into(part, self.greatest, self.scale, &mut weights);
                at = pick(&weights, left).map(|at| chunk * scan::CHUNK + at);
                break;
            }
            left -= sum;
        }
        let weight = |at: usize| scan::exp_one(values[at], self.greatest, self.scale);
        // Rounding may leave a little behind the last one: then that it is.
        let at = at.or_else(|| (0..values.len()).rev().find(|at| weight(*at) > 0.0));
        let choice = at.map(|at| Choice { token: self.id(at), probability: f64::from(weight(at)) / total });
        self.weights = weights;
        choice
    }

    /// Returns the tokens that are left.
    #[cfg(test)]
    pub(crate) fn left(&self, logits: &[f32]) -> Vec<u32> {
        let values = self.values(logits);
        let left = (0..values.len()).filter(|at| values[*at] > f32::NEG_INFINITY).map(|at| self.id(at));
        left.filter(|token| self.is_list || self.banned.binary_search(token).is_err()).collect()
    }

    /// Returns the tokens that are left, with their probabilities.
    #[cfg(test)]
    pub(crate) fn probabilities(&mut self, logits: &[f32]) -> Vec<(u32, f64)> {
        let total = self.total(logits);
        self.own(logits);
        let values = self.values(logits);
        let weight = |at: usize| f64::from(scan::exp_one(values[at], self.greatest, self.scale));
        let left = (0..values.len()).filter(|at| values[*at] > f32::NEG_INFINITY);
        left.map(|at| (self.id(at), weight(at) / total)).collect()
    }

    fn id(&self, at: usize) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "token ids are 32 bits wide")]
        if self.is_list { self.ids[at] } else { at as u32 }
    }

    /// The whole vocabulary but for what is banned, in parts.
    fn allowed<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = &'a [f32]> + Clone {
        let dense = self.dense(logits);
        let ends = self.banned.iter().map(|token| *token as usize).chain(std::iter::once(dense.len()));
        let begins = std::iter::once(0).chain(self.banned.iter().map(|token| *token as usize + 1));
        begins.zip(ends).map(|(begin, end)| &dense[begin..end])
    }

    fn dense<'a>(&'a self, logits: &'a [f32]) -> &'a [f32] {
        if self.is_owned { &self.owned } else { logits }
    }

    fn values<'a>(&'a self, logits: &'a [f32]) -> &'a [f32] {
        if self.is_list { &self.kept } else { self.dense(logits) }
    }

    /// Makes a list of the whole vocabulary's logits of at least a threshold.
    fn list_from(&mut self, logits: &[f32], threshold: f32) {
        let values = if self.is_owned { &self.owned } else { logits };
        // What is impossible is never listed.
        let threshold = threshold.max(f32::MIN);
        scan::collect_at_least(values, &self.maxima, threshold, &mut self.ids, &mut self.kept);
        self.become_list();
    }

    /// Does so if they are few, and says whether.
    fn list_few_from(&mut self, logits: &[f32], threshold: f32) -> bool {
        let values = if self.is_owned { &self.owned } else { logits };
        let few = (threshold.max(f32::MIN), MANY);
        let are_few = scan::collect_few_at_least(values, &self.maxima, few, &mut self.ids, &mut self.kept);
        if are_few {
            self.become_list();
        }
        are_few
    }

    /// Makes a list of the whole vocabulary's best logits.
    fn list_best(&mut self, logits: &[f32], cut: Cut) {
        let values = if self.is_owned { &self.owned } else { logits };
        // Banned ones do not count.
        let equal = |token: &&u32| values[**token as usize].to_bits() == cut.key.to_bits();
        let n_banned = self.banned.iter().filter(equal).count();
        let best = (cut.key, cut.n_equal + n_banned);
        scan::collect_best(values, &self.maxima, best, &mut self.ids, &mut self.kept);
        self.become_list();
        if n_banned > 0 {
            self.keep_cut(cut);
        }
    }

    fn become_list(&mut self) {
        for token in &self.banned {
            if let Ok(at) = self.ids.binary_search(token) {
                self.ids.remove(at);
                self.kept.remove(at);
            }
        }
        self.is_list = true;
        // The greatest is among them, but a list has maxima and a total of its own.
        self.is_fresh = false;
        self.total = None;
    }

    fn keep_from(&mut self, logits: &[f32], threshold: f32) {
        if self.is_list {
            scan::keep_at_least(threshold, &mut self.ids, &mut self.kept);
            self.is_fresh = false;
            self.total = None;
        } else {
            self.list_from(logits, threshold);
        }
    }

    fn keep_cut(&mut self, cut: Cut) {
        scan::keep_best((cut.key, cut.n_equal), &mut self.ids, &mut self.kept);
        self.is_fresh = false;
        self.total = None;
    }

    fn keep_only(&mut self, token: u32) {
        self.banned.clear();
        self.ids.clear();
        self.ids.push(token);
        self.kept.clear();
        self.kept.push(0.0);
        self.is_list = true;
        self.is_fresh = false;
        self.total = None;
    }

    fn retain(&mut self, mut keeps: impl FnMut(usize, f32) -> bool) {
        let mut n = 0;
        let len = self.kept.len().min(self.ids.len());
        let (kept, ids) = (&mut self.kept[..len], &mut self.ids[..len]);
        for i in 0..len {
            // Without branches, which nobody could predict.
            let keeps = keeps(i, kept[i]);
            kept[n] = kept[i];
            ids[n] = ids[i];
            n += usize::from(keeps);
        }
        self.kept.truncate(n);
        self.ids.truncate(n);
        self.is_fresh = false;
        self.total = None;
    }
}

/// So many tokens may be impossible without a copy of the vocabulary.
const FEW_BANNED: usize = 32;
/// How far below the greatest logit, divided by the temperature, the least of the likeliest mostly is.
const SHALLOW: f32 = 6.0;
/// How far it hardly ever is.
const DEEP: f32 = 24.0;
/// So few may be put in order.
const FEW: usize = 128;
/// More than so many are not listed before it is known which.
const MANY: usize = 4096;
/// How often a border is narrowed further.
const ROUNDS: usize = 4;
/// Covers sums that round differently in another order.
const MARGIN: f64 = 1.0 + 1e-5;

/// Where the last one of the likeliest lies that are kept: at `low` or above it, and below `above`.
#[derive(Clone, Copy, Debug)]
struct Border {
    above: f32,
    low: f32,
    /// The weight of what lies at `above` or higher.
    reached: f64,
}

impl Border {
    const fn above(low: f32) -> Self {
        Self { above: f32::INFINITY, low, reached: 0.0 }
    }

    /// Narrows it to what lies between two steps, given the weight of what reaches each of them. Where only rounding keeps
    /// all of them from meeting the goal, nothing is left between its ends.
    fn narrow(&mut self, steps: &[f32; scan::LEVELS], masses: &[f64; scan::LEVELS], goal: Goal) {
        for (step, mass) in steps.iter().zip(masses) {
            if goal.is_met_by(*mass) {
                self.low = *step;
                return;
            }
            (self.above, self.reached) = (*step, *mass);
        }
    }
}

/// Goes from one logit down to another one in even steps, but for the last, which is `last`.
fn even_steps(from: f32, to: f32, last: f32) -> [f32; scan::LEVELS] {
    let mut steps = [last; scan::LEVELS];
    let (first, to) = (f64::from(from), f64::from(to));
    for (i, step) in (0u32..).zip(&mut steps[..scan::LEVELS - 1]) {
        let part = f64::from(i) / (scan::LEVELS - 1) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "between two logits")]
        let between = (first - (first - to) * part) as f32;
        *step = between;
    }
    steps
}

/// How many of the likeliest mirostat 1 looks at.
const SLOPE: usize = 100;

/// Returns which weight `left` falls on, or the last one above 0 when it falls behind them all.
fn pick(weights: &[f32], left: f64) -> Option<usize> {
    let mut left = left;
    for (at, weight) in weights.iter().enumerate() {
        left -= f64::from(*weight);
        if left < 0.0 {
            return Some(at);
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0)
}

/// Keeps what was possible possible: overflow makes no infinities, which would leave no number for the others.
fn bounded(before: f32, after: f32) -> f32 {
    if before > f32::NEG_INFINITY { after.clamp(f32::MIN, f32::MAX) } else { before }
}

/// Changes logits.
pub(crate) struct Edit<'a> {
    values: &'a mut [f32],
    /// Whose logits `values` are, where they are not all.
    ids: Option<&'a Vec<u32>>,
    touched: &'a mut Vec<u32>,
    #[cfg_attr(not(feature = "constrained"), expect(dead_code, reason = "only whole masks make everything stale"))]
    is_fresh: &'a mut bool,
}

impl Edit<'_> {
    /// Changes one token's logit, if it is still there.
    pub(crate) fn change(&mut self, token: u32, change: impl FnOnce(f32) -> f32) {
        self.set(token, |logit| bounded(logit, change(logit)));
    }

    /// Makes a token impossible.
    pub(crate) fn ban(&mut self, token: u32) {
        self.set(token, |_| f32::NEG_INFINITY);
    }

    fn set(&mut self, token: u32, change: impl FnOnce(f32) -> f32) {
        let at = match self.ids {
            None => token as usize,
            Some(ids) => ids.binary_search(&token).unwrap_or(usize::MAX),
        };
        if let Some(value) = self.values.get_mut(at) {
            *value = change(*value);
            #[expect(clippy::cast_possible_truncation, reason = "token ids are 32 bits wide")]
            self.touched.push(at as u32);
        }
    }

    /// Makes every token impossible that is not in a set, one bit a token.
    #[cfg(feature = "constrained")]
    pub(crate) fn ban_all_but(&mut self, allowed: &[u32]) {
        *self.is_fresh = false;
        let is_allowed = |token: usize| allowed.get(token / 32).is_some_and(|bits| bits >> (token % 32) & 1 == 1);
        match self.ids {
            Some(ids) => {
                for (value, id) in self.values.iter_mut().zip(ids) {
                    if !is_allowed(*id as usize) {
                        *value = f32::NEG_INFINITY;
                    }
                }
            }
            None => {
                for (i, part) in self.values.chunks_mut(32).enumerate() {
                    match allowed.get(i).copied().unwrap_or(0) {
                        u32::MAX => {}
                        0 => part.fill(f32::NEG_INFINITY),
                        bits => {
                            for (bit, value) in part.iter_mut().enumerate() {
                                if bits >> bit & 1 == 0 {
                                    *value = f32::NEG_INFINITY;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Logits of all shapes: with a few likely tokens and a long tail, flat, all the same.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let tail = prop_oneof![Just(0.0f32), Just(1.0), Just(3.0), Just(12.0)];
        let logit = prop_oneof![6 => -1f32..1.0, 1 => Just(0.5f32), 1 => Just(-0.0f32), 1 => Just(f32::NEG_INFINITY)];
        (tail, 0f32..9.0, 0usize..40, prop::collection::vec(logit, 1..6000)).prop_map(
            |(spread, ahead, n_ahead, mut logits)| {
                logits.iter_mut().for_each(|logit| *logit *= if *logit > f32::NEG_INFINITY { spread } else { 1.0 });
                for (i, logit) in logits.iter_mut().step_by(97).take(n_ahead).enumerate() {
                    *logit = ahead - 0.1 * i as f32;
                }
                logits
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        #[test]
        fn a_mass_is_that_of_the_fewest_likeliest(logits in logits(), share in 0.05f32..0.9999, temperature in 0.2f32..4.0) {
            let mut candidates = Candidates::default();
            prop_assume!(candidates.begin(&logits).0 > f32::NEG_INFINITY);
            candidates.cool(&logits, temperature);
            candidates.keep_mass(&logits, share);
            let left = candidates.left(&logits);

            let mut order: Vec<usize> = (0..logits.len()).filter(|i| logits[*i] > f32::NEG_INFINITY).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let weight = |i: &usize| (f64::from(logits[*i] - logits[order[0]]) / f64::from(temperature)).exp();
            let goal = order.iter().map(weight).sum::<f64>() * f64::from(share);
            let mut expected: Vec<u32> = order[..left.len()].iter().map(|i| *i as u32).collect();
            expected.sort_unstable();
            prop_assert_eq!(&left, &expected, "the likeliest, and of equal ones the first");
            let reached: f64 = order[..left.len()].iter().map(weight).sum();
            let last = weight(&order[left.len() - 1]);
            prop_assert!(reached >= goal * (1.0 - 1e-5), "{} tokens reach {}, wanted {}", left.len(), reached, goal);
            prop_assert!(reached - last <= goal * (1.0 + 1e-5), "{} tokens reach {}, wanted {}", left.len(), reached, goal);
        }

        #[test]
        fn sums_after_changes_are_those_of_what_is_left(logits in logits(), banned in prop::collection::vec(0u32..6000, 0..20)) {
            let mut candidates = Candidates::default();
            prop_assume!(candidates.begin(&logits).0 > f32::NEG_INFINITY);
            candidates.total(&logits);
            let mut changed = logits.clone();
            for token in banned {
                candidates.edit(&logits).ban(token);
                if let Some(logit) = changed.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            let greatest = scan::block_maxima(&changed, &mut Vec::new());
            prop_assume!(greatest > f32::NEG_INFINITY);
            let expected = scan::sum_exp(&changed, greatest, 1.0, &mut Vec::new());
            prop_assert_eq!(candidates.total(&logits).to_bits(), expected.to_bits());
        }
    }
}
