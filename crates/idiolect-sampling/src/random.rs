//! Random numbers by number, not by sequence: what is drawn at one step depends on no other step.

/// Which random numbers a sampler uses. Equal streams draw equal tokens from equal logits, whatever else is drawn
/// beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The request's seed.
    pub seed: u64,
    /// The request's number, so that one seed serves several requests: see [`of_prompt`](Self::of_prompt).
    pub request: u64,
    /// The candidate's index within the request.
    pub candidate: u64,
}

impl Stream {
    /// Makes the stream of a candidate whose request is told apart by its prompt.
    ///
    /// Equal prompts with equal seeds give equal texts, whenever they come and whatever is drawn beside them. Other prompts
    /// draw other numbers from the same seed: were they the same, two prompts that are nearly alike would get replies that
    /// are nearly alike.
    ///
    /// ```
    /// use idiolect_sampling::Stream;
    ///
    /// assert_eq!(Stream::of_prompt(7, &[1, 2], 0), Stream::of_prompt(7, &[1, 2], 0));
    /// assert_ne!(Stream::of_prompt(7, &[1, 2], 0).request, Stream::of_prompt(7, &[2, 1], 0).request);
    /// ```
    #[must_use]
    pub fn of_prompt(seed: u64, prompt: &[u32], candidate: u64) -> Self {
        let request = prompt.iter().fold(prompt.len() as u64, |sum, token| mix(sum ^ u64::from(*token)));
        Self { seed, request, candidate }
    }
}

/// What a number is for. Each use has numbers of its own, so that switching one stage on shifts no other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Token,
    Xtc,
}

/// The random numbers of a [`Stream`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(stream: Stream) -> Self {
        // Neighbouring numbers must not give neighbouring streams: each goes through the mill before the next comes.
        let seed = mix(stream.seed ^ 0x6964_696f_6c65_6374);
        let request = mix(seed.wrapping_add(stream.request.wrapping_mul(0xd134_2543_de82_ef95)));
        Self(mix(request.wrapping_add(stream.candidate.wrapping_mul(0xaf25_1af3_b0f0_25b5))))
    }

    /// Returns a number in [0, 1).
    pub(crate) fn fraction(self, step: u64, purpose: Use) -> f64 {
        let number = step.wrapping_mul(2).wrapping_add(purpose as u64);
        let bits = mix(mix(self.0.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))) ^ self.0);
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
        let mantissa = (bits >> 11) as f64;
        mantissa / (1u64 << 53) as f64
    }
}

/// Mixes the bits of a number (the finalizer of SplitMix64).
const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_steps_differ() {
        let mut firsts = Vec::new();
        for seed in 0..20 {
            for request in 0..20 {
                for candidate in 0..20 {
                    let random = Random::new(Stream { seed, request, candidate });
                    for step in 0..3 {
                        firsts.push(random.fraction(step, Use::Token).to_bits());
                        firsts.push(random.fraction(step, Use::Xtc).to_bits());
                    }
                }
            }
        }
        let n = firsts.len();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), n);
    }

    #[test]
    fn numbers_are_uniform_and_unrelated() {
        // Along each of the five ways in which neighbouring numbers arise.
        let fraction = |seed, request, candidate, step| {
            Random::new(Stream { seed, request, candidate }).fraction(step, Use::Token)
        };
        for way in 0..5 {
            let numbers: Vec<f64> = (0..40_000u64)
                .map(|i| match way {
                    0 => fraction(i, 0, 0, 0),
                    1 => fraction(7, i, 0, 0),
                    2 => fraction(7, 0, i, 0),
                    3 => fraction(7, 0, 0, i),
                    _ => fraction(7, Stream::of_prompt(7, &[5, i as u32, 9], 0).request, 0, 0),
                })
                .collect();
            let mut buckets = [0f64; 16];
            for number in &numbers {
                buckets[(number * 16.0) as usize] += 1.0;
            }
            let chi: f64 = buckets.iter().map(|n| (n - 2500.0).powi(2) / 2500.0).sum();
            assert!(chi < 45.0, "way {way}: chi square of 15 degrees is {chi}");
            let covariance: f64 = numbers.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / 40_000.0;
            assert!(covariance.abs() < 0.002, "way {way}: neighbours have covariance {covariance}");
        }
    }
}
