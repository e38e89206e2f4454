//! The chain against a plain reference, and what must hold of every chain.

mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use self::reference::{Context, Left};
use crate::random::{Random, Use};
use crate::{
    Ban, Chain, DrawError, Dry, FrequencyPresence, LogitBias, MinP, Mirostat, MirostatVersion, Preset, Repetition,
    Sampler, Scope, Stage, StageKind, Stream, Temperature, TopK, TopNSigma, TopP, Typical, Vocabulary, Xtc,
};

fn vocabulary(n: usize) -> Arc<Vocabulary> {
    let letters = ["a", "b", "ab", "ba", "c", ":", "\n", "abc", " ", "d"];
    Arc::new(Vocabulary::new((0..n).map(|i| letters.get(i).copied().unwrap_or("z")), &[]))
}

fn stream(seed: u64) -> Stream {
    Stream { seed, request: 1, candidate: 2 }
}

fn sampler(stages: &[Stage], n: usize, seed: u64, prompt: &[u32]) -> Sampler {
    let chain = Chain::new(stages, Some(&vocabulary(n))).expect("these stages are in their ranges");
    Sampler::new(&Arc::new(chain), stream(seed), prompt)
}

/// Draws one token and returns it with all that could have been drawn.
fn one(stages: &[Stage], logits: &[f32], seed: u64) -> (u32, Vec<u32>) {
    let mut sampler = sampler(stages, logits.len(), seed, &[]);
    let drawn = sampler.draw(logits, &[]).unwrap();
    (drawn.token, sampler.left(logits))
}

/// Logits as models have them, flat ones, steep ones, some equal, some impossible.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let plain = prop::collection::vec(-12f32..12.0, 2..300);
    let many = (any::<u64>(), 2usize..5000, 0.01f32..8.0).prop_map(|(seed, n, width)| noise(seed, n, width));
    let stepped = prop::collection::vec((-6i8..6).prop_map(|step| f32::from(step) * 0.5), 2..300);
    let masked = prop::collection::vec(prop_oneof![3 => -12f32..12.0, 1 => Just(f32::NEG_INFINITY)], 2..200).prop_map(
        |mut logits| {
            logits[0] = 1.0;
            logits
        },
    );
    prop_oneof![3 => plain, 2 => many, 1 => stepped, 1 => masked]
}

/// About normal numbers with a few far above the others.
fn noise(seed: u64, n: usize, width: f32) -> Vec<f32> {
    let random = Random::new(stream(seed));
    let mut logits: Vec<f32> = (0..n as u64)
        .map(|i| {
            let sum: f64 = (0..6).map(|k| random.fraction(6 * i + k, Use::Xtc)).sum();
            (sum - 3.0) as f32 * width
        })
        .collect();
    for k in 0..5u64 {
        let at = (random.fraction(k, Use::Token) * n as f64) as usize;
        logits[at] += random.fraction(k + 9, Use::Token) as f32 * 6.0;
    }
    logits
}

fn truncation() -> impl Strategy<Value = Stage> {
    prop_oneof![
        (0u32..60).prop_map(|k| Stage::TopK(TopK { k })),
        (0.01f32..=1.0).prop_map(|p| Stage::TopP(TopP { p })),
        (0f32..0.99, any::<bool>()).prop_map(|(p, exclusive)| Stage::MinP(MinP { p, exclusive })),
        (0f32..4.0).prop_map(|n| Stage::TopNSigma(TopNSigma { n })),
    ]
}

fn edit() -> impl Strategy<Value = Stage> {
    let last_n = || prop_oneof![Just(None), (0u32..20).prop_map(Some)];
    let scope = || prop_oneof![Just(Scope::All), Just(Scope::Output)];
    prop_oneof![
        prop::collection::btree_map(0u32..12, prop_oneof![-5f32..5.0, Just(-100.0)], 0..4)
            .prop_map(|bias| Stage::LogitBias(LogitBias { bias })),
        (prop::collection::vec(0u32..12, 0..3), prop::collection::vec("[ab]{1,3}", 0..3))
            .prop_map(|(tokens, phrases)| Stage::Ban(Ban { tokens, phrases })),
        (0.2f32..3.0, last_n(), scope()).prop_map(|(penalty, last_n, scope)| Stage::Repetition(Repetition {
            penalty,
            last_n,
            scope
        })),
        (-2f32..2.0, -2f32..2.0, last_n(), scope()).prop_map(|(frequency, presence, last_n, scope)| {
            Stage::FrequencyPresence(FrequencyPresence { frequency, presence, last_n, scope })
        }),
        (0f32..3.0, 1f32..3.0, 1u32..4, last_n(), scope()).prop_map(
            |(multiplier, base, allowed_length, last_n, scope)| {
                Stage::Dry(Dry { multiplier, base, allowed_length, last_n, scope, ..Dry::default() })
            }
        ),
    ]
}

fn shape() -> impl Strategy<Value = Stage> {
    prop_oneof![
        (0.05f32..3.0)
            .prop_map(|temperature| Stage::Temperature(Temperature { temperature, ..Temperature::default() })),
        Just(Stage::Temperature(Temperature { temperature: 0.0, ..Temperature::default() })),
        (0.05f32..3.0, 0f32..2.0, 0.2f32..3.0).prop_map(|(temperature, range, exponent)| {
            Stage::Temperature(Temperature { temperature, range, exponent })
        }),
        (0.05f32..=1.0).prop_map(|p| Stage::Typical(Typical { p })),
        (0f32..=1.0, 0f32..0.6).prop_map(|(probability, threshold)| Stage::Xtc(Xtc { probability, threshold })),
    ]
}

fn any_chain() -> impl Strategy<Value = Vec<Stage>> {
    let mirostat = (any::<bool>(), 0.5f32..8.0, 0.01f32..=1.0).prop_map(|(first, tau, eta)| {
        let version = if first { MirostatVersion::V1 } else { MirostatVersion::V2 };
        Stage::Mirostat(Mirostat { version, tau, eta })
    });
    let last = prop_oneof![6 => Just(None), 1 => Just(Some(Stage::Greedy {})), 2 => mirostat.prop_map(Some)];
    let stage = prop_oneof![4 => truncation(), 3 => edit(), 3 => shape()];
    (prop::collection::vec(stage, 0..6), last).prop_map(|(mut stages, last)| {
        if matches!(last, Some(Stage::Mirostat(_))) {
            stages.retain(|stage| !stage.kind().truncates());
        }
        stages.extend(last);
        stages
    })
}

/// The reference's view of a sampler's next draw.
fn expected(stages: &[Stage], logits: &[f32], seed: u64, prompt: &[u32], said: &[u32], mu: f64) -> Left {
    let vocabulary = vocabulary(logits.len());
    let random = Random::new(stream(seed));
    let strikes = |probability: f32| random.fraction(said.len() as u64, Use::Xtc) < f64::from(probability);
    let context = Context { vocabulary: &vocabulary, prompt, said, xtc_strikes: &strikes, mu };
    stages.iter().fold(Left::new(logits), |left, stage| left.run(stage, &context)).possible()
}

/// Compares draws of a chain with the reference until one is too narrow to call.
fn check(stages: &[Stage], rows: &[Vec<f32>], seed: u64, prompt: &[u32]) -> Result<(), TestCaseError> {
    let n = rows[0].len();
    let mut sampler = sampler(stages, n, seed, prompt);
    let random = Random::new(stream(seed));
    let mut said = Vec::new();
    let mirostat = stages.iter().find_map(|stage| match stage {
        Stage::Mirostat(m) => Some((f64::from(m.tau), f64::from(m.eta))),
        _ => None,
    });
    let mut mu = mirostat.map_or(0.0, |(tau, _)| 2.0 * tau);
    for logits in rows {
        let expected = expected(stages, logits, seed, prompt, &said, mu);
        if expected.is_narrow {
            break;
        }
        let drawn = sampler.draw(logits, &[]);
        if expected.tokens.is_empty() {
            prop_assert_eq!(drawn, Err(DrawError::NothingLeft));
            break;
        }
        let token = drawn.unwrap().token;
        let probabilities = expected.probabilities();
        if sampler.chain_is_plain() {
            prop_assert_eq!(sampler.left(logits), probabilities.keys().copied().collect::<Vec<_>>());
        }
        // Which one the number falls on, in the order of ids.
        let fraction = random.fraction(said.len() as u64, Use::Token);
        let mut before = 0.0;
        let mut is_near = false;
        for (id, probability) in &probabilities {
            let margin = 1e-4;
            if *id == token {
                is_near = before - margin <= fraction && fraction <= before + probability + margin;
            }
            before += probability;
        }
        prop_assert!(is_near || probabilities.len() == 1, "token {} of {:?} at {}", token, probabilities, fraction);
        prop_assert!(probabilities.contains_key(&token));
        if let Some((tau, eta)) = mirostat {
            mu -= eta * (-probabilities[&token].log2() - tau);
        }
        said.push(token);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn each_stage_equals_the_reference(
        logits in any_logits(),
        stage in prop_oneof![truncation(), edit(), shape()],
        seed: u64,
        prompt in prop::collection::vec(0u32..12, 0..30),
    ) {
        check(&[stage], &[logits], seed, &prompt)?;
    }

    #[test]
    fn whole_chains_equal_the_reference(
        rows in any_logits(),
        stages in any_chain(),
        seed: u64,
        prompt in prop::collection::vec(0u32..12, 0..30),
    ) {
        // A short text of rows that favour the same few tokens, so that there is something to repeat.
        let rows: Vec<Vec<f32>> = (0..8).map(|i| {
            let mut row = rows.clone();
            row.iter_mut().take(6).enumerate().for_each(|(k, logit)| *logit += ((i * 7 + k * 3) % 5) as f32 + 3.0);
            row
        }).collect();
        check(&stages, &rows, seed, &prompt)?;
    }

    #[test]
    fn presets_equal_the_reference(logits in any_logits(), seed: u64, which in 0usize..3, dry in 0f32..2.0) {
        let preset = Preset::ALL[which];
        let mut stages = preset.stages();
        preset.place(&mut stages, preset.repetition(1.1));
        preset.place(&mut stages, preset.frequency_presence(0.2, 0.1));
        preset.place(&mut stages, preset.min_p(0.03));
        preset.place(&mut stages, Stage::TopK(TopK { k: 30 }));
        preset.place(&mut stages, Stage::Dry(Dry { multiplier: dry, ..Dry::default() }));
        check(&stages, &vec![logits; 12], seed, &[1, 2, 3])?;
    }

    #[test]
    fn no_chain_empties_the_set(logits in any_logits(), stages in any_chain(), seed: u64) {
        // Bans aside, which may.
        let stages: Vec<Stage> =
            stages.into_iter().filter(|s| !matches!(s, Stage::Ban(_) | Stage::LogitBias(_))).collect();
        let mut sampler = sampler(&stages, logits.len(), seed, &[0, 1, 2]);
        for _ in 0..5 {
            let drawn = sampler.draw(&logits, &[]);
            prop_assert!(drawn.is_ok(), "{:?}", drawn);
            prop_assert!(logits[drawn.unwrap().token as usize] > f32::NEG_INFINITY);
        }
    }

    #[test]
    fn the_likeliest_token_survives_truncation_and_temperature(
        logits in any_logits(),
        stages in prop::collection::vec(truncation(), 1..5),
        temperature in 0.05f32..5.0,
        at in 0usize..5,
        seed: u64,
    ) {
        let mut stages = stages;
        stages.insert(at.min(stages.len()), Stage::Temperature(Temperature { temperature, ..Temperature::default() }));
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|l| *l == greatest).unwrap() as u32;
        let (_, left) = one(&stages, &logits, seed);
        prop_assert!(left.contains(&first));
        // And greedy takes it after any of them.
        stages.push(Stage::Greedy {});
        prop_assert_eq!(one(&stages, &logits, seed).0, first);
        stages.pop();
        stages.push(Stage::Temperature(Temperature { temperature: 0.0, ..Temperature::default() }));
        prop_assert_eq!(one(&stages, &logits, seed).0, first);
    }

    #[test]
    fn the_sigma_set_does_not_depend_on_temperature(logits in any_logits(), n in 0.1f32..4.0, temperature in 0.05f32..5.0) {
        let sigma = Stage::TopNSigma(TopNSigma { n });
        let heat = Stage::Temperature(Temperature { temperature, ..Temperature::default() });
        prop_assert_eq!(
            one(&[sigma.clone(), heat.clone()], &logits, 0).1,
            one(&[heat, sigma], &logits, 0).1
        );
    }

    #[test]
    fn stages_that_are_off_change_nothing(logits in any_logits(), stages in any_chain(), seed: u64, at in 0usize..6) {
        let off = [
            Stage::Xtc(Xtc { probability: 0.0, threshold: 0.1 }),
            Stage::Xtc(Xtc { probability: 1.0, threshold: 0.51 }),
            Stage::Dry(Dry { multiplier: 0.0, allowed_length: 1, ..Dry::default() }),
            Stage::Repetition(Repetition { penalty: 1.0, ..Repetition::default() }),
            Stage::FrequencyPresence(FrequencyPresence::default()),
            Stage::TopK(TopK { k: 0 }),
            Stage::TopP(TopP { p: 1.0 }),
            Stage::Typical(Typical { p: 1.0 }),
            Stage::MinP(MinP { p: 0.0, exclusive: true }),
            Stage::TopNSigma(TopNSigma { n: 0.0 }),
            Stage::Temperature(Temperature { temperature: 1.0, ..Temperature::default() }),
            Stage::LogitBias(LogitBias::default()),
            Stage::Ban(Ban::default()),
        ];
        let draws = |stages: &[Stage]| {
            let mut sampler = sampler(stages, logits.len(), seed, &[3, 4]);
            (0..4).map(|_| sampler.draw(&logits, &[])).collect::<Vec<_>>()
        };
        let plain = draws(&stages);
        for stage in off {
            prop_assert!(stage.is_off());
            let mut with = stages.clone();
            with.insert(at.min(stages.len().saturating_sub(1)), stage);
            prop_assert_eq!(&draws(&with), &plain);
        }
    }

    #[test]
    fn candidates_draw_alike_whatever_is_drawn_beside_them(
        logits in any_logits(),
        stages in any_chain(),
        seed: u64,
        n in 1u64..9,
    ) {
        let chain = Arc::new(Chain::new(&stages, Some(&vocabulary(logits.len()))).unwrap());
        let make = |candidate| Sampler::new(&chain, Stream { seed, request: 5, candidate }, &[1, 2]);
        let rows: Vec<Vec<f32>> = (0..6).map(|i| logits.iter().map(|l| l * (1.0 + i as f32 / 8.0)).collect()).collect();
        // One after the other, side by side, and each on a thread of its own.
        let alone: Vec<Vec<_>> = (0..n)
            .map(|candidate| {
                let mut sampler = make(candidate);
                rows.iter().map(|row| sampler.draw(row, &[])).collect()
            })
            .collect();
        let mut samplers: Vec<Sampler> = (0..n).map(make).collect();
        let mut beside = vec![Vec::new(); n as usize];
        for row in &rows {
            for (sampler, drawn) in samplers.iter_mut().zip(&mut beside) {
                drawn.push(sampler.draw(row, &[]));
            }
        }
        prop_assert_eq!(&alone, &beside);
        let threads: Vec<Vec<_>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..n)
                .map(|candidate| {
                    let (rows, make) = (&rows, &make);
                    scope.spawn(move || {
                        let mut sampler = make(candidate);
                        rows.iter().map(|row| sampler.draw(row, &[])).collect::<Vec<_>>()
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        prop_assert_eq!(&alone, &threads);
    }

    #[test]
    fn strange_logits_are_an_error_wherever_they_are(
        logits in any_logits(),
        stages in any_chain(),
        at: prop::sample::Index,
        strange in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(-f32::NAN)],
    ) {
        let mut sampler = sampler(&stages, logits.len(), 0, &[]);
        let mut bad = logits.clone();
        bad[at.index(logits.len())] = strange;
        prop_assert_eq!(sampler.draw(&bad, &[]), Err(DrawError::NotFinite));
        prop_assert_eq!(sampler.draw(&vec![f32::NEG_INFINITY; logits.len()], &[]), Err(DrawError::NotFinite));
        prop_assert_eq!(sampler.draw(&[], &[]), Err(DrawError::NotFinite));
        prop_assert_eq!(sampler.n_drawn(), 0);
    }

    #[test]
    fn extreme_logits_give_a_token(
        logits in prop::collection::vec(
            prop_oneof![any::<f32>().prop_filter("finite", |l| l.is_finite()), Just(f32::MAX), Just(f32::MIN), Just(0.0)],
            1..300,
        ),
        stages in any_chain(),
        seed: u64,
    ) {
        let stages: Vec<Stage> =
            stages.into_iter().filter(|s| !matches!(s, Stage::Ban(_) | Stage::LogitBias(_))).collect();
        let mut sampler = sampler(&stages, logits.len(), seed, &[0, 1, 2, 0, 1, 2, 0]);
        for _ in 0..4 {
            let drawn = sampler.draw(&logits, &[]);
            prop_assert!(drawn.is_ok(), "{:?}", drawn);
            prop_assert!(drawn.unwrap().logprob <= 0.0);
        }
    }

    #[test]
    fn log_probabilities_are_the_models_own(logits in any_logits(), stages in any_chain(), seed: u64, n in 0usize..30) {
        let mut sampler = sampler(&stages, logits.len(), seed, &[]).with_top_logprobs(n);
        let Ok(drawn) = sampler.draw(&logits, &[9]) else { return Ok(()) };
        let probabilities = Left::new(&logits).probabilities();
        let near = |token: u32, logprob: f32| {
            let exact = probabilities[&token].ln();
            (f64::from(logprob) - exact).abs() < 1e-4 || (exact == f64::NEG_INFINITY && logprob == f32::NEG_INFINITY)
        };
        prop_assert!(near(drawn.token, drawn.logprob));
        let mut best: Vec<u32> = (0..logits.len() as u32).collect();
        best.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        best.truncate(n);
        prop_assert_eq!(sampler.top().iter().map(|t| t.0).collect::<Vec<_>>(), best);
        prop_assert!(sampler.top().iter().all(|(token, logprob)| near(*token, *logprob)));
    }

    #[test]
    fn banned_phrases_never_appear(seed: u64, phrases in prop::collection::vec("[abc]{1,5}", 1..5)) {
        // Token 8 is a blank: no phrase can ban it.
        let logits = [1.0f32, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, -3.0, 0.0];
        let stages = [Stage::Ban(Ban { tokens: vec![6], phrases: phrases.clone() })];
        let vocabulary = vocabulary(logits.len());
        let mut sampler = sampler(&stages, logits.len(), seed, &[]);
        let mut text = Vec::new();
        for _ in 0..60 {
            let token = sampler.draw(&logits, &[]).unwrap().token;
            prop_assert_ne!(token, 6);
            text.extend_from_slice(vocabulary.bytes(token));
        }
        let text = String::from_utf8(text).unwrap();
        for phrase in phrases {
            prop_assert!(!text.contains(&phrase), "{} holds {}", text, phrase);
        }
    }

    #[test]
    fn ends_wait_for_the_least_length(logits in any_logits(), seed: u64, n in 0u32..10) {
        let end = (logits.len() - 1) as u32;
        let mut sampler = sampler(&[], logits.len(), seed, &[]).with_min_tokens(n, &[end]);
        let mut certain = vec![-50.0; logits.len()];
        certain[end as usize] = 50.0;
        for step in 0..12 {
            let drawn = sampler.draw(&certain, &[]).unwrap();
            prop_assert_eq!(drawn.token == end, step >= n);
        }
    }
}

#[test]
fn ends_are_drawn_when_nothing_else_is_left() {
    let mut sampler = sampler(&[], 2, 0, &[]).with_min_tokens(3, &[1]);
    assert_eq!(sampler.draw(&[f32::NEG_INFINITY, 0.0], &[]).unwrap().token, 1);
    assert_eq!(sampler.draw(&[0.0, 0.0], &[0]).unwrap().token, 1);
    assert_eq!(sampler.draw(&[0.0, 0.0], &[0, 1]), Err(DrawError::NothingLeft));
    assert_eq!(sampler.draw(&[0.0, 0.0], &[]).unwrap().token, 0);
}

/// The figures of llama.cpp's own tests (tests/test-sampling.cpp).
#[test]
fn stages_give_llama_cpps_figures() {
    // What is left, by token, of probabilities.
    fn check(stage: &Stage, said: &[u32], probabilities: &[f32], expected: &[(u32, f64)]) {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let vocabulary = Arc::new(Vocabulary::new(["a", "b", "c", "BREAK", "e"], &[]));
        let chain = Chain::new(std::slice::from_ref(stage), Some(&vocabulary)).unwrap();
        let mut counts = BTreeMap::new();
        let n = 20_000;
        let chain = Arc::new(chain);
        let mut left = Vec::new();
        for candidate in 0..n {
            let mut sampler = Sampler::new(&chain, Stream { seed: 1, request: 0, candidate }, said);
            let token = sampler.draw(&logits, &[]).unwrap().token;
            *counts.entry(token).or_insert(0.0) += 1.0 / n as f64;
            left = sampler.probabilities(&logits);
        }
        assert_eq!(left.len(), expected.len(), "{stage:?} leaves {left:?}");
        for ((token, probability), (expected_token, expected)) in left.iter().zip(expected) {
            assert_eq!(token, expected_token, "{stage:?}");
            assert!((probability - expected).abs() < 1e-5, "{stage:?} leaves {left:?}");
            assert!((counts.get(token).copied().unwrap_or(0.0) - expected).abs() < 0.015, "{stage:?} draws {counts:?}");
        }
    }
    let tenths = [0.1, 0.2, 0.3, 0.4];
    let all = [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)];
    let last_3 = [(1, 0.222_22), (2, 0.333_33), (3, 0.444_44)];
    let last_2 = [(2, 0.428_571), (3, 0.571_429)];
    let last_1 = [(3, 1.0)];

    let temperature = |temperature| Stage::Temperature(Temperature { temperature, ..Temperature::default() });
    check(&temperature(1.0), &[], &tenths, &all);
    check(&temperature(0.0), &[], &tenths, &last_1);
    for (k, expected) in [(1, &last_1[..]), (3, &last_3), (4, &all), (0, &all)] {
        check(&Stage::TopK(TopK { k }), &[], &tenths, expected);
    }
    for (p, expected) in [(1e-9, &last_1[..]), (0.7, &last_2), (0.8, &last_3), (1.0, &all)] {
        check(&Stage::TopP(TopP { p }), &[], &tenths, expected);
    }
    for (p, expected) in [
        (0.0, &all[..]),
        (0.24, &all),
        (0.26, &last_3),
        (0.49, &last_3),
        (0.51, &last_2),
        (0.74, &last_2),
        (0.76, &last_1),
        (0.999, &last_1),
    ] {
        check(&Stage::MinP(MinP { p, exclusive: false }), &[], &tenths, expected);
    }
    let falling = [0.4, 0.3, 0.2, 0.1];
    let rest = |tokens: &[(u32, f64)]| {
        let total: f64 = tokens.iter().map(|t| t.1).sum();
        tokens.iter().map(|t| (t.0, t.1 / total)).collect::<Vec<_>>()
    };
    let all_falling = [(0, 0.4), (1, 0.3), (2, 0.2), (3, 0.1)];
    for (threshold, from) in [(0.09, 3), (0.19, 2), (0.29, 1), (0.39, 0)] {
        check(&Stage::Xtc(Xtc { probability: 1.0, threshold }), &[], &falling, &rest(&all_falling[from..]));
    }
    check(&Stage::Typical(Typical { p: 0.5 }), &[], &[0.97, 0.01, 0.01, 0.01], &last_of(0));
    let third = 1.0 / 3.0;
    check(&Stage::Typical(Typical { p: 0.5 }), &[], &[0.4, 0.2, 0.2, 0.2], &[(1, third), (2, third), (3, third)]);

    let fifths = [0.2; 5];
    let repetition = Stage::Repetition(Repetition { penalty: 10.0, ..Repetition::default() });
    // llama.cpp's 50 is beyond our range; ten leaves 0.2^10.
    let rare = 0.2f64.powi(10);
    check(&repetition, &[0], &fifths, &rest(&[(0, rare), (1, 0.2), (2, 0.2), (3, 0.2), (4, 0.2)]));
    check(&repetition, &[0, 1, 2, 0, 0], &fifths, &rest(&[(0, rare), (1, rare), (2, rare), (3, 0.2), (4, 0.2)]));
    // Likewise its 5 and 5: our 2 and 2.
    let counted = Preset::LlamaCpp.frequency_presence(2.0, 2.0);
    let (once, thrice) = (0.2 * (-4f64).exp(), 0.2 * (-8f64).exp());
    check(&counted, &[0], &fifths, &rest(&[(0, once), (1, 0.2), (2, 0.2), (3, 0.2), (4, 0.2)]));
    check(&counted, &[0, 1, 2], &fifths, &rest(&[(0, once), (1, once), (2, once), (3, 0.2), (4, 0.2)]));
    check(&counted, &[0, 1, 2, 0, 0], &fifths, &rest(&[(0, thrice), (1, once), (2, once), (3, 0.2), (4, 0.2)]));

    let dry = |multiplier, allowed_length, breakers: &[&str]| {
        let breakers = breakers.iter().map(|b| (*b).to_owned()).collect();
        Stage::Dry(Dry { multiplier, base: 1.1, allowed_length, scope: Scope::All, breakers, ..Dry::default() })
    };
    let fourths = [0.25; 4];
    let even = |n: u32| (0..n).map(|t| (t, 1.0 / f64::from(n))).collect::<Vec<_>>();
    check(&dry(1.0, 2, &[]), &[0, 1], &fourths, &even(4));
    check(
        &dry(1.0, 2, &[]),
        &[0, 1, 2, 0, 1],
        &fourths,
        &[(0, 0.296_923), (1, 0.296_923), (2, 0.109_232), (3, 0.296_923)],
    );
    check(&dry(1.0, 2, &["BREAK"]), &[0, 1, 3, 4, 0, 1], &fifths, &even(5));
    check(
        &dry(2.0, 2, &[]),
        &[0, 1, 2, 0, 1],
        &fifths,
        &[(0, 0.241_818), (1, 0.241_818), (2, 0.032_727), (3, 0.241_818), (4, 0.241_818)],
    );
    check(&dry(1.0, 4, &[]), &[0, 1, 2, 3, 4, 0, 1], &fifths, &even(5));

    check(&Stage::TopNSigma(TopNSigma { n: 1.0 }), &[], &tenths, &last_2);
    check(&Stage::TopNSigma(TopNSigma { n: 0.0 }), &[], &tenths, &all);
    check(&Stage::TopNSigma(TopNSigma { n: 3.0 }), &[], &tenths, &all);
}

fn last_of(token: u32) -> [(u32, f64); 1] {
    [(token, 1.0)]
}

#[test]
fn mirostat_holds_the_surprise() {
    // Zipf's law over a thousand words.
    let logits: Vec<f32> = (0..1000).map(|i| -(f64::from(i) + 1.0).ln() as f32).collect();
    for version in [MirostatVersion::V1, MirostatVersion::V2] {
        for tau in [2.0f32, 3.0, 5.0] {
            let (eta, n) = (0.1, 4000);
            let mirostat = Stage::Mirostat(Mirostat { version, tau, eta });
            let mut sampler = sampler(&[mirostat], logits.len(), 3, &[]);
            for _ in 0..n {
                sampler.draw(&logits, &[]).unwrap();
            }
            // Every draw moved the bound by eta times what its surprise was off: the sum tells the mean.
            let off = (2.0 * tau - sampler.mu()) / (eta * n as f32);
            assert!(off.abs() < 0.05, "{version:?} holds {} instead of {tau}", tau + off);
        }
    }
}

#[test]
fn a_greedy_chain_needs_no_luck() {
    let chain = |stages: &[Stage]| Chain::new(stages, None).unwrap().is_greedy();
    let cold = Stage::Temperature(Temperature { temperature: 0.0, ..Temperature::default() });
    assert!(chain(&[Stage::Greedy {}]));
    assert!(chain(&[Stage::TopP(TopP { p: 0.5 }), cold.clone(), Stage::TopK(TopK { k: 3 })]));
    assert!(!chain(&[]));
    assert!(!chain(&[Stage::Xtc(Xtc { probability: 0.5, threshold: 0.1 }), cold]));
}

#[test]
fn what_cannot_be_had_is_named() {
    let stages = [
        Stage::Dry(Dry { multiplier: 1.0, ..Dry::default() }),
        Stage::Ban(Ban { phrases: vec!["x".into()], ..Ban::default() }),
    ];
    assert!(Chain::needs_vocabulary(&stages));
    assert_eq!(Chain::available().contains(&StageKind::Constraint), cfg!(feature = "constrained"));
    let error = Chain::new(&stages, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "dry needs the texts of the model's tokens; ban needs the texts of the model's tokens"
    );
    let error = Chain::new(&[Stage::TopP(TopP { p: 0.0 })], None).unwrap_err();
    assert_eq!(error.to_string(), "top_p.p is 0, expected above 0 and at most 1");
}
