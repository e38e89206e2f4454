//! How fast an engine is, before anybody has asked it for anything: so that the first request with a deadline is given what
//! it has time for, too.

use crate::clock::Clock;
use crate::cost::Cost;
use crate::engine::{Engine, EngineError, Feed, Seq, Wants};
use crate::speed::Meter;

/// Tokens of the prompt: the fewest that tell anything.
const PROMPT: usize = 16;
/// Steps that candidates are grown for.
const STEPS: usize = 2;
/// Candidates of the larger step: the most of these for which there is memory.
const CANDIDATES: [usize; 4] = [8, 4, 2, 1];
/// Candidates of the smaller one.
const FEW: usize = 2;

/// Computes a short prompt and a token of a few continuations. Says nothing where there is no memory for them, or where the
/// engine fails: whoever asks it for something hears of that.
pub(crate) fn measure(engine: &mut impl Engine, portions: u64, clock: &Clock) -> Meter {
    let mut meter = Meter::default();
    if let Err(error) = steps(engine, portions, clock, &mut meter) {
        tracing::debug!(%error, "the engine's speed could not be measured");
    }
    engine.reset();
    meter
}

fn steps(engine: &mut impl Engine, portions: u64, clock: &Clock, meter: &mut Meter) -> Result<(), EngineError> {
    let cost = Cost::new(engine.portion(), PROMPT, STEPS);
    let Some(n) = CANDIDATES.into_iter().find(|n| cost.of(*n) <= portions) else { return Ok(()) };
    if engine.context() < PROMPT + STEPS {
        return Ok(());
    }
    let prompt = [0; PROMPT];
    let (first, _) = engine.begin(&prompt, 0, STEPS)?;
    let began = clock.now();
    engine.forward(&[Feed { seq: first, tokens: &prompt, wants: Wants::Last }])?;
    meter.note(PROMPT, 0, clock.now().saturating_duration_since(began));
    let mut seqs = vec![first];
    for _ in 1..n {
        seqs.push(engine.fork(first)?);
    }
    grow(engine, &seqs, clock, meter)?;
    if n > FEW {
        seqs.drain(FEW..).for_each(|seq| engine.release(seq));
        grow(engine, &seqs, clock, meter)?;
    }
    Ok(())
}

fn grow(engine: &mut impl Engine, seqs: &[Seq], clock: &Clock, meter: &mut Meter) -> Result<(), EngineError> {
    let feeds: Vec<Feed<'_>> = seqs.iter().map(|seq| Feed { seq: *seq, tokens: &[0], wants: Wants::Last }).collect();
    let began = clock.now();
    engine.forward(&feeds)?;
    meter.note(0, seqs.len(), clock.now().saturating_duration_since(began));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

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
    fn where_memory_is_short_less_is_measured() {
        let script = Arc::new(Script::paced(2000, 1000, 500));
        for (portions, sizes) in [(32, vec![2, 8]), (31, vec![2, 4]), (20, vec![2]), (19, vec![1]), (17, vec![])] {
            let (mut engine, ..) = script.engine(|_| ());
            let meter = measure(&mut engine, portions, &script.clock());
            assert_eq!(meter.speed().decode.iter().map(|of| of.candidates).collect::<Vec<_>>(), sizes, "{portions}");
            assert_eq!(meter.step(1, 0).is_some(), portions >= 18);
        }
    }
}
