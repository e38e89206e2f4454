//! How fast an engine is, before anybody has asked it for anything: so that the first request with a deadline is given what
//! it has time for, too.

use std::time::Duration;

use crate::clock::Clock;
use crate::cost::Cost;
use crate::engine::{Engine, EngineError, Feed, Seq, Wants};
use crate::speed::Meter;

/// Tokens of the prompt: the fewest that tell anything.
const PROMPT: usize = 16;
/// Samples of each kind at most ...
const SAMPLES: usize = 3;
/// ... of which one is spared once they took this long ...
const LONG: Duration = Duration::from_millis(20);
/// ... and another one once they took this long.
const TOO_LONG: Duration = Duration::from_millis(80);
/// Tokens that each candidate may have.
const ROOM: usize = 2 * SAMPLES;
/// Candidates of the larger steps: the most of these for which there is memory.
const CANDIDATES: [usize; 4] = [8, 4, 2, 1];
/// Candidates of the smaller ones.
const FEW: usize = 2;

/// Computes a short prompt and some tokens of a few continuations, each some times over after a step that is not counted: the
/// first one has threads to wake and pages to fill. Says nothing where there is no memory for them, or where the engine fails:
/// whoever asks it for something hears of that.
pub(crate) fn measure(engine: &mut impl Engine, portions: u64, clock: &Clock) -> Meter {
    let mut meter = Meter::default();
    if let Err(error) = steps(engine, portions, clock, &mut meter) {
        tracing::debug!(%error, "the engine's speed could not be measured");
    }
    engine.reset();
    meter
}

fn steps(engine: &mut impl Engine, portions: u64, clock: &Clock, meter: &mut Meter) -> Result<(), EngineError> {
    let cost = Cost::new(engine.portion(), PROMPT, ROOM);
    let Some(n) = CANDIDATES.into_iter().find(|n| cost.of(*n) <= portions) else { return Ok(()) };
    if engine.context() < PROMPT + ROOM {
        return Ok(());
    }
    let prompt = [0; PROMPT];
    let (cold, _) = engine.begin(&prompt, 0, 0)?;
    engine.forward(&[Feed { seq: cold, tokens: &prompt[..1], wants: Wants::Nothing }])?;
    engine.release(cold);

    let mut seqs = Vec::new();
    let read = samples(clock, || {
        seqs.drain(..).for_each(|seq| engine.release(seq));
        let (first, _) = engine.begin(&prompt, 0, ROOM)?;
        seqs.push(first);
        engine.forward(&[Feed { seq: first, tokens: &prompt, wants: Wants::Last }])
    })?;
    meter.note(PROMPT, 0, read);
    for _ in 1..n {
        seqs.push(engine.fork(seqs[0])?);
    }
    meter.note(0, n, samples(clock, || grow(engine, &seqs))?);
    if n > FEW {
        seqs.drain(FEW..).for_each(|seq| engine.release(seq));
        meter.note(0, FEW, samples(clock, || grow(engine, &seqs))?);
    }
    Ok(())
}

fn grow(engine: &mut impl Engine, seqs: &[Seq]) -> Result<(), EngineError> {
    let feeds: Vec<Feed<'_>> = seqs.iter().map(|seq| Feed { seq: *seq, tokens: &[0], wants: Wants::Last }).collect();
    engine.forward(&feeds)
}

/// Takes samples of what a step takes, and returns the middle one; the faster one of two.
fn samples(clock: &Clock, mut step: impl FnMut() -> Result<(), EngineError>) -> Result<Duration, EngineError> {
    let mut took: Vec<Duration> = Vec::with_capacity(SAMPLES);
    loop {
        let so_far = took.iter().sum::<Duration>();
        let spared = usize::from(so_far >= LONG) + usize::from(so_far >= TOO_LONG);
        if took.len() + spared >= SAMPLES {
            break;
        }
        let began = clock.now();
        step()?;
        took.push(clock.now().saturating_duration_since(began));
    }
    took.sort_unstable();
    Ok(took.get(took.len().saturating_sub(1) / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::speed::DecodeSpeed;
    use crate::testing::script::Script;

    #[test]
    fn an_engine_is_measured_and_left_as_it_was() {
        let script = Arc::new(Script::paced(2000, 1000, 500));
        let (mut engine, ..) = script.engine(|_| ());
        let meter = measure(&mut engine, 1000, &script.clock());
        assert_eq!(meter.step(16, 0), Some(Duration::from_millis(10)));
        let decode = [(2, 500.0), (8, 800.0)].map(|(candidates, tokens_per_second)| (candidates, tokens_per_second));
        let measured = meter.speed().decode.into_iter();
        let measured: Vec<_> =
            measured.map(|DecodeSpeed { candidates, tokens_per_second }| (candidates, tokens_per_second)).collect();
        assert_eq!(measured, decode);
        assert_eq!(script.n_sequences(), 0);
    }

    #[test]
    fn steps_that_take_long_are_taken_less_often() {
        // One that is not counted, then three of each kind, or two, or one.
        for (micros, steps) in [(5_000, 1 + 9), (12_000, 1 + 6), (30_000, 1 + 6), (90_000, 1 + 3)] {
            let script = Arc::new(Script::paced(micros, 0, 0));
            let (mut engine, ..) = script.engine(|_| ());
            measure(&mut engine, 1000, &script.clock());
            assert_eq!(script.steps().len(), steps, "of {micros} us");
        }
    }

    #[test]
    fn what_is_cold_or_held_up_does_not_count() {
        for held_up in 0..10 {
            let script = Arc::new(Script::paced(5_000, 0, 0));
            let (mut engine, ..) = script.engine(|_| ());
            script.held_up.store(held_up, Ordering::Relaxed);
            let meter = measure(&mut engine, 1000, &script.clock());
            for (prompt, candidates) in [(16, 0), (0, 8), (0, 2)] {
                assert_eq!(
                    meter.step(prompt, candidates),
                    Some(Duration::from_millis(5)),
                    "step {held_up} was held up"
                );
            }
        }
    }

    #[test]
    fn where_memory_is_short_less_is_measured() {
        let script = Arc::new(Script::paced(2000, 1000, 500));
        for (portions, sizes) in [(64, vec![2, 8]), (63, vec![2, 4]), (28, vec![2]), (27, vec![1]), (21, vec![])] {
            let (mut engine, ..) = script.engine(|_| ());
            let meter = measure(&mut engine, portions, &script.clock());
            assert_eq!(meter.speed().decode.iter().map(|of| of.candidates).collect::<Vec<_>>(), sizes, "{portions}");
            assert_eq!(meter.step(1, 0).is_some(), portions >= 22);
        }
    }
}
