//! Every stage in the plainest way: all in `f64`, everything sorted, nothing shared with the sampler.

use std::collections::{BTreeMap, BTreeSet};

use crate::{MirostatVersion, Scope, Stage, Vocabulary};

/// What a reference chain leaves.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// Tokens by id, with their logits.
    pub(super) tokens: Vec<(u32, f64)>,
    /// Some decision was so narrow that 32 bits may decide otherwise.
    pub(super) is_narrow: bool,
}

/// What stages look at.
pub(super) struct Context<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) prompt: &'a [u32],
    pub(super) said: &'a [u32],
    pub(super) xtc_strikes: &'a dyn Fn(f32) -> bool,
    pub(super) mu: f64,
}

/// Two sums this near, relative to the whole, may compare either way.
const NARROW: f64 = 2e-5;

impl Left {
    pub(super) fn new(logits: &[f32]) -> Self {
        Self { tokens: (0..).zip(logits.iter().map(|l| f64::from(*l))).collect(), is_narrow: false }
    }

    /// Drops what is impossible.
    pub(super) fn possible(mut self) -> Self {
        self.tokens.retain(|(_, logit)| *logit > f64::NEG_INFINITY);
        self
    }

    /// The tokens' probabilities, by id.
    pub(super) fn probabilities(&self) -> BTreeMap<u32, f64> {
        let top = self.tokens.iter().map(|t| t.1).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = self.tokens.iter().map(|t| (t.1 - top).exp()).sum();
        self.tokens.iter().map(|t| (t.0, (t.1 - top).exp() / total)).collect()
    }

    fn probability(&self) -> impl Fn(&(u32, f64)) -> f64 + use<> {
        let probabilities = self.probabilities();
        move |token| probabilities[&token.0]
    }

    /// Keeps the first of the tokens, sorted by falling keys, until `is_enough` of the probability so far.
    fn keep_by(
        &mut self,
        key: impl Fn(&(u32, f64)) -> f64,
        goal: f64,
        exceeds: bool,
        weight: impl Fn(&(u32, f64)) -> f64,
    ) {
        self.tokens.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.0.cmp(&b.0)));
        let mut sum = 0.0;
        let mut n = self.tokens.len();
        for (i, token) in self.tokens.iter().enumerate() {
            sum += weight(token);
            if (sum - goal).abs() < NARROW {
                self.is_narrow = true;
            }
            if sum > goal || (!exceeds && sum >= goal) {
                n = i + 1;
                break;
            }
        }
        if n < self.tokens.len() {
            let (last, next) = (key(&self.tokens[n - 1]), key(&self.tokens[n]));
            self.is_narrow |= last != next && last - next < 1e-4 * (1.0 + last.abs());
            // Equal keys of different logits (typical) may differ in 32 bits.
            self.is_narrow |= last == next && self.tokens[n - 1].1 != self.tokens[n].1;
        }
        self.tokens.truncate(n);
        self.tokens.sort_by_key(|token| token.0);
    }

    fn keep_from(&mut self, threshold: f64) {
        self.is_narrow |= self.tokens.iter().any(|t| (t.1 - threshold).abs() < 1e-4 * (1.0 + threshold.abs()));
        self.tokens.retain(|t| t.1 >= threshold);
    }

    fn greatest(&self) -> f64 {
        self.tokens.iter().map(|t| t.1).fold(f64::NEG_INFINITY, f64::max)
    }

    fn take_greatest(&mut self) {
        let greatest = self.greatest();
        self.is_narrow |= self.tokens.iter().any(|t| t.1 != greatest && greatest - t.1 < 1e-5 * (1.0 + greatest.abs()));
        self.tokens = self.tokens.iter().find(|t| t.1 == greatest).map(|t| vec![*t]).unwrap_or_default();
    }

    fn cool(&mut self, temperature: f64) {
        if temperature < 1e-5 {
            self.take_greatest();
        } else {
            self.tokens.iter_mut().for_each(|t| t.1 /= temperature);
        }
    }

    fn entropy(&self) -> f64 {
        -self.probabilities().values().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }

    fn window(context: &Context<'_>, scope: Scope, last_n: Option<u32>) -> Vec<u32> {
        let mut tokens = if scope == Scope::All { context.prompt.to_vec() } else { Vec::new() };
        tokens.extend_from_slice(context.said);
        let from = tokens.len().saturating_sub(last_n.map_or(usize::MAX, |n| n as usize));
        tokens.split_off(from)
    }

    fn change(&mut self, token: u32, change: impl Fn(f64) -> f64) {
        self.tokens.iter_mut().filter(|t| t.0 == token).for_each(|t| t.1 = change(t.1));
    }

    /// Runs one stage.
    pub(super) fn run(mut self, stage: &Stage, context: &Context<'_>) -> Self {
        if self.tokens.iter().all(|t| t.1 == f64::NEG_INFINITY) {
            return self;
        }
        match stage {
            Stage::Constraint(_) => unreachable!("tested elsewhere"),
            Stage::LogitBias(s) => {
                for (token, bias) in &s.bias {
                    let never = *bias <= -100.0;
                    self.change(*token, |l| if never { f64::NEG_INFINITY } else { l + f64::from(*bias) });
                }
            }
            Stage::Ban(s) => {
                let said: Vec<u8> = context.said.iter().flat_map(|t| context.vocabulary.bytes(*t)).copied().collect();
                for token in self.tokens.iter().map(|t| t.0).collect::<Vec<_>>() {
                    let next = context.vocabulary.bytes(token);
                    let holds = |phrase: &String| {
                        let text = [&said, next].concat();
                        let new = text.len().saturating_sub(next.len() + phrase.len() - 1);
                        !next.is_empty() && text[new..].windows(phrase.len()).any(|w| w == phrase.as_bytes())
                    };
                    if s.tokens.contains(&token) || s.phrases.iter().any(holds) {
                        self.change(token, |_| f64::NEG_INFINITY);
                    }
                }
            }
            Stage::Repetition(s) => {
                let penalty = f64::from(s.penalty);
                for token in Self::window(context, s.scope, s.last_n).into_iter().collect::<BTreeSet<_>>() {
                    self.change(token, |l| if l > 0.0 { l / penalty } else { l * penalty });
                }
            }
            Stage::FrequencyPresence(s) => {
                for token in Self::window(context, s.scope, s.last_n).into_iter().collect::<BTreeSet<_>>() {
                    let n = Self::window(context, s.scope, s.last_n).iter().filter(|t| **t == token).count();
                    self.change(token, |l| l - n as f64 * f64::from(s.frequency) - f64::from(s.presence));
                }
            }
            Stage::Dry(s) => {
                let said = Self::window(context, s.scope, s.last_n);
                let text = |token: u32| String::from_utf8_lossy(context.vocabulary.bytes(token)).into_owned();
                let breaks = |token: u32| s.breakers.iter().any(|b| text(token).contains(b));
                for token in self.tokens.iter().map(|t| t.0).filter(|t| !breaks(*t)).collect::<Vec<_>>() {
                    let longest = (0..said.len())
                        .filter(|at| said[*at] == token)
                        .map(|at| {
                            (1..=at)
                                .take_while(|n| said[at - n] == said[said.len() - n] && !breaks(said[at - n]))
                                .count()
                        })
                        .max()
                        .unwrap_or(0);
                    if longest >= s.allowed_length as usize {
                        let power = f64::from(s.base).powi((longest - s.allowed_length as usize) as i32);
                        self.change(token, |l| l - f64::from(s.multiplier) * power);
                    }
                }
            }
            Stage::TopNSigma(s) => {
                if s.n > 0.0 {
                    let finite: Vec<f64> = self.tokens.iter().map(|t| t.1).filter(|l| l.is_finite()).collect();
                    let n = finite.len() as f64;
                    let mean = finite.iter().sum::<f64>() / n;
                    let sigma = (finite.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
                    self.is_narrow |= finite.len() > 1 && sigma < 1e-2;
                    self.keep_from(self.greatest() - f64::from(s.n) * sigma);
                }
            }
            Stage::TopK(s) => {
                if s.k > 0 && (s.k as usize) < self.tokens.len() {
                    self.keep_by(|t| t.1, f64::from(s.k), false, |_| 1.0);
                    // Whole numbers are never narrow.
                    self = self.possible();
                }
            }
            Stage::Typical(s) => {
                if s.p < 1.0 {
                    self = self.possible();
                    let entropy = self.entropy();
                    let p = self.probability();
                    let surprise = |t: &(u32, f64)| -(-p(t).max(f64::MIN_POSITIVE).ln() - entropy).abs();
                    self.keep_by(surprise, f64::from(s.p), true, &p);
                }
            }
            Stage::TopP(s) => {
                if s.p < 1.0 {
                    self = self.possible();
                    let p = self.probability();
                    self.keep_by(|t| t.1, f64::from(s.p), false, p);
                }
            }
            Stage::MinP(s) => {
                if s.p > 0.0 {
                    self = self.possible();
                    self.keep_from(self.greatest() + f64::from(s.p).ln());
                }
            }
            Stage::Xtc(s) => {
                if s.probability > 0.0 && s.threshold <= 0.5 && (context.xtc_strikes)(s.probability) {
                    self = self.possible();
                    let p = self.probability();
                    let bar = f64::from(s.threshold);
                    self.is_narrow |= self.tokens.iter().any(|t| (p(t) - bar).abs() < NARROW);
                    let likely: Vec<(u32, f64)> = self.tokens.iter().copied().filter(|t| p(t) >= bar).collect();
                    if likely.len() >= 2 {
                        let spared = likely.iter().copied().reduce(|a, b| if b.1 <= a.1 { b } else { a }).unwrap();
                        self.is_narrow |= likely.iter().any(|t| t.1 != spared.1 && t.1 - spared.1 < 1e-4);
                        self.tokens.retain(|t| p(t) < bar || t.0 == spared.0);
                    }
                }
            }
            Stage::Temperature(s) if s.range > 0.0 => {
                let possible = self.clone().possible();
                if possible.tokens.len() > 1 {
                    let share = (possible.entropy() / (possible.tokens.len() as f64).ln()).clamp(0.0, 1.0);
                    let coldest = f64::from((s.temperature - s.range).max(0.0));
                    let hottest = f64::from(s.temperature + s.range);
                    let temperature = coldest + (hottest - coldest) * share.powf(f64::from(s.exponent));
                    // So near the end of the scale nothing is sure.
                    self.is_narrow |= temperature < 1e-2 && temperature > 0.0;
                    self.cool(temperature);
                }
            }
            Stage::Temperature(s) => self.cool(f64::from(s.temperature)),
            Stage::Mirostat(s) => {
                let n_vocabulary = context.vocabulary.len() as f64;
                self = self.possible();
                match s.version {
                    MirostatVersion::V2 => {
                        let p = self.probability();
                        let greatest = self.greatest();
                        let limit = context.mu;
                        self.is_narrow |= self.tokens.iter().any(|t| (-p(t).log2() - limit).abs() < 1e-3);
                        self.tokens.retain(|t| -p(t).log2() <= limit || t.1 == greatest);
                    }
                    MirostatVersion::V1 => {
                        let mut sorted: Vec<f64> = self.tokens.iter().map(|t| t.1).collect();
                        sorted.sort_by(|a, b| b.total_cmp(a));
                        sorted.truncate(100);
                        let (mut products, mut squares) = (0.0, 0.0);
                        for i in 0..sorted.len().saturating_sub(1) {
                            let t = ((i as f64 + 2.0) / (i as f64 + 1.0)).ln();
                            products += t * (sorted[i] - sorted[i + 1]);
                            squares += t * t;
                        }
                        if squares > 0.0 {
                            let s = products / squares;
                            let e = s - 1.0;
                            let k = (e * context.mu.exp2() / (1.0 - n_vocabulary.powf(-e))).powf(1.0 / s);
                            self.is_narrow |= (k - k.round()).abs() < 1e-3 * k.abs().max(1.0) || e.abs() < 1e-3;
                            if k.is_finite() && k < n_vocabulary {
                                let k = k.floor().max(1.0);
                                if (k as usize) < self.tokens.len() {
                                    self.keep_by(|t| t.1, k, false, |_| 1.0);
                                }
                            }
                        }
                    }
                }
            }
            Stage::Greedy {} => self.take_greatest(),
        }
        self
    }
}
