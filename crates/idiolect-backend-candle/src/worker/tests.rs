//! How requests share the engine: tests with one that takes known times and writes down its steps.

mod stage;

use std::sync::atomic::Ordering;

use idiolect_backend::{Completion, Error, Event, FinishReason, Message, Request, ScoreRequest};

use self::stage::{Asked, Stage, request};
use crate::testing::kept::Kept;
use crate::testing::script::{Fault, Script, Step, TOKEN_BYTES};

fn lengths(answer: &Completion) -> Vec<u32> {
    answer.candidates.iter().map(|candidate| candidate.n_tokens).collect()
}

#[test]
fn candidates_of_different_requests_grow_in_the_same_steps() {
    let mut stage = Stage::paced(3000, 0, 0);
    let before = stage.n_steps();
    let asked: Vec<Asked> =
        (1..=3).map(|i| stage.ask(&request("one", i, 10 + 10 * u32::try_from(i).unwrap()))).collect();
    stage.run();
    for (i, asked) in (1..=3).zip(asked) {
        assert_eq!(lengths(&asked.answer().unwrap()), vec![10 + 10 * u32::try_from(i).unwrap(); i]);
    }
    assert_eq!(stage.script.most_candidates(before), 6);
    let steps = stage.n_steps() - before;
    assert!(steps < 45, "{steps} steps for texts of 20, 30 and 40 tokens");
    let speed = stage.speed();
    assert!(speed.decode.iter().any(|of| of.candidates == 8), "{speed:?}");
}

#[test]
fn who_leaves_in_the_middle_of_a_step_leaves_nothing_behind() {
    let mut stage = Stage::paced(20_000, 0, 0);
    // With their second tokens all three end, while nobody listens any more.
    let mut asked = stage.ask(&request("x", 3, 2));
    stage.until(|_| !asked.events().is_empty());
    assert_eq!(stage.script.n_sequences(), 3);
    stage.script.meanwhile(move || drop(asked));
    stage.run();
    assert_eq!(stage.script.n_sequences(), 0, "sequences that nobody has");
    stage.complete(&request("x", 1, 2)).unwrap();
}

#[test]
fn scores_share_steps_and_take_their_part_of_the_memory() {
    let mut large = Stage::paced(3000, 0, 0);
    let mut small = Stage::new(Script::paced(3000, 0, 0), |config| config.max_kv_bytes = 400_000);
    let messages = [Message::user("x")];
    let ask = |n: usize| ScoreRequest::new(messages.clone(), "y".repeat(n));
    let scored = |stage: &mut Stage, request: &ScoreRequest| {
        let mut score = stage.ask_score(request);
        stage.run();
        score.try_recv().unwrap()
    };
    let mut scores = [ask(100), ask(100), ask(100).with_rows(), ask(100).with_rows()].map(|ask| large.ask_score(&ask));
    large.run();
    for (i, score) in scores.iter_mut().enumerate() {
        let score = score.try_recv().unwrap().unwrap();
        assert_eq!((score.tokens.len(), score.rows.map(|rows| rows.len())), (100, (i >= 2).then_some(100)));
    }
    assert_eq!(scored(&mut large, &ask(3900).with_rows()).unwrap().tokens.len(), 3900);
    // A token takes 1,000 bytes of keys and values, and 1,036 of logits where they are wanted.
    assert_eq!(scored(&mut small, &ask(100).with_rows()).unwrap().tokens.len(), 100);
    assert_eq!(scored(&mut small, &ask(200)).unwrap().tokens.len(), 200);
    let own = scored(&mut small, &ask(200).with_own_logits()).unwrap().own_logits.unwrap();
    assert_eq!((own.n_rows(), own.tokens().len(), own.moments().count()), (200, 1, 200 * 259));
    let error = scored(&mut small, &ask(200).with_rows()).unwrap_err().to_string();
    assert!(error.contains("207200 of them for rows of 259 logits, 400000 are allowed"), "{error}");
    assert_eq!((large.script.n_sequences(), small.script.n_sequences()), (0, 0));
}

#[test]
fn a_long_prompt_holds_up_nobody_for_long() {
    let mut stage = Stage::paced(1000, 0, 500);
    // So that it is known how long prompts take.
    stage.complete(&request(&"x".repeat(200), 1, 2)).unwrap();
    let mut short = stage.ask(&request("short", 1, 400));
    stage.until(|_| !short.events().is_empty());
    let long = stage.ask(&request(&"y".repeat(1500), 1, 2));
    stage.run();
    assert_eq!(long.answer().unwrap().candidates.len(), 1);
    let mixed: Vec<Step> =
        stage.script.steps().into_iter().filter(|step| step.candidates > 0 && step.prompt_tokens > 0).collect();
    assert!(mixed.len() >= 5, "{mixed:?}");
    // 80 ms at 0.5 ms a token are 160.
    assert!(mixed.iter().all(|step| step.prompt_tokens <= 160), "{mixed:?}");
}

#[test]
fn what_does_not_fit_waits_and_nobody_waits_beyond_the_deadline() {
    // Room for one of these at a time.
    let mut stage = Stage::new(Script::paced(2000, 0, 0), |config| config.max_kv_bytes = 500_000);
    let prompt = stage.complete(&request("x", 1, 1)).unwrap().usage.prompt_tokens;
    let max_tokens = (500 - prompt) / 2;
    let ask = request("x", 2, max_tokens);
    let first = stage.ask(&ask);
    stage.turn();
    let (second, late) = (stage.ask(&ask), stage.ask(&stage.due(ask.clone(), 30)));
    let begun = stage.script.now();
    stage.until(|_| late.is_answered());
    assert!(!first.is_answered(), "who is late hears of it at once");
    assert!(stage.script.now() - begun <= std::time::Duration::from_millis(32));
    assert!(matches!(late.answer(), Err(Error::DeadlineExceeded)));
    let before = stage.n_steps();
    stage.run();
    assert_eq!(lengths(&first.answer().unwrap()), [max_tokens; 2]);
    assert_eq!(lengths(&second.answer().unwrap()), [max_tokens; 2]);
    assert_eq!(stage.script.most_candidates(before), 2);
    let error = stage.complete(&request("x", 2, max_tokens + 1)).unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "{error}");
}

#[test]
fn the_nearest_deadline_comes_first() {
    let mut stage = Stage::new(Script::paced(1000, 0, 0), |config| config.max_batch = 1);
    let running = stage.ask(&request("x", 1, 2));
    stage.turn();
    let five = request("x", 1, 5);
    let whenever = stage.ask(&five);
    let in_time = stage.ask(&stage.due(five.clone(), 20_000));
    let soon = stage.ask(&stage.due(five, 10_000));
    let mut asked = vec![("running", running), ("whenever", whenever), ("in time", in_time), ("soon", soon)];
    let mut order = Vec::new();
    stage.until(|_| {
        asked.retain(|(name, asked)| {
            if asked.is_answered() {
                order.push(*name);
            }
            !asked.is_answered()
        });
        false
    });
    assert_eq!(order, ["running", "soon", "in time", "whenever"]);
}

#[test]
fn fewer_candidates_are_begun_where_all_would_not_end_in_time() {
    let mut stage = Stage::paced(1000, 4000, 0);
    for n in [8, 4, 2] {
        stage.complete(&request("x", n, 8)).unwrap();
    }
    // All eight would take 60 times 33 ms, four 17, two 9.
    let ask = stage.due(request("x", 8, 60), 1400);
    let answer = stage.complete(&ask).unwrap();
    assert!(stage.script.now() <= ask.deadline.unwrap());
    let n = answer.candidates.len();
    assert!((2..8).contains(&n), "{n} candidates");
    assert!(answer.candidates.iter().any(|c| c.finish_reason == FinishReason::Length), "{answer:?}");
    let everything = stage.complete(&stage.due(request("x", 8, 10), 5000)).unwrap();
    assert_eq!(everything.candidates.len(), 8, "all of them where there is time");
}

#[test]
fn the_worst_are_given_up_where_the_others_can_then_end() {
    let mut stage = Stage::paced(0, 16_000, 0);
    for n in [2, 4] {
        stage.complete(&request("x", n, 6)).unwrap();
    }
    // Quick at first, then four times as slow: two of them can still make it.
    stage.script.candidate.store(4000, Ordering::Relaxed);
    for _ in 0..3 {
        stage.complete(&request("x", 4, 16)).unwrap();
    }
    // Of 24 steps twenty are slow: four candidates would take 1280 ms for them, two 640.
    let mut asked = stage.ask(&stage.due(request("x", 4, 24), 1180));
    let (mut ended, mut n_deltas) = (Vec::new(), 0);
    stage.until(|stage| {
        for event in asked.events() {
            match event {
                Event::Delta { .. } => n_deltas += 1,
                Event::Finished { reason, n_tokens, .. } => ended.push((reason, n_tokens)),
                Event::Done { .. } => {}
            }
        }
        if n_deltas >= 16 {
            stage.script.candidate.store(16_000, Ordering::Relaxed);
        }
        false
    });
    assert_eq!(ended.len(), 4);
    let given_up = ended.iter().filter(|(reason, n)| *reason == FinishReason::Deadline && *n < 24).count();
    let whole = ended.iter().filter(|(reason, _)| *reason == FinishReason::Length).count();
    assert!(given_up >= 1 && whole >= 2, "{ended:?}");
}

/// Asks for everything that there is time for in so many milliseconds.
fn everything(stage: &Stage, n: usize, millis: u64) -> Request {
    stage.due(request("x", n, 4000), millis)
}

#[test]
fn memory_is_set_aside_for_what_there_is_time_for() {
    let mut stage = Stage::new(Script::paced(10_000, 0, 100), |config| config.max_kv_bytes = 500_000);
    // What it takes was measured before anybody asked.
    let ask = everything(&stage, 2, 400);
    let first = stage.complete(&ask).unwrap();
    assert!(lengths(&first).iter().all(|n| *n >= 30), "{:?}", lengths(&first));
    assert!(stage.script.now() <= ask.deadline.unwrap());
    let before = stage.n_steps();
    // Forty tokens each, half as many again and 32: two of these fit, and another.
    let asked = [0, 1].map(|_| stage.ask(&everything(&stage, 2, 400)));
    stage.run();
    for asked in asked {
        let candidates = asked.answer().unwrap().candidates;
        assert!(candidates.iter().all(|candidate| candidate.n_tokens >= 30), "{candidates:?}");
        assert!(candidates.iter().all(|candidate| candidate.finish_reason == FinishReason::Deadline));
    }
    assert_eq!(stage.script.most_candidates(before), 4, "side by side");
    let error = stage.complete(&everything(&stage, 2, 60_000)).unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "time for more than the memory holds: {error}");
    assert!(stage.complete(&request("x", 2, 4000)).is_err(), "and so without a deadline");
}

#[test]
fn what_is_planned_for_a_deadline_is_told() {
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || {
        let mut stage = Stage::paced(10_000, 0, 100);
        let planned = "idiolect_candle_planned_tokens candle";
        stage.complete(&request("x", 2, 10)).unwrap();
        assert_eq!(kept.last(planned), None, "no deadlines so far");
        let prompt = stage.complete(&request("x", 1, 2)).unwrap().usage.prompt_tokens;
        for millis in [100, 300, 2000] {
            let prefill = f64::from(prompt) / stage.speed().prefill_tokens_per_second.unwrap();
            stage.complete(&everything(&stage, 4, millis)).unwrap();
            // Half as much again as there is time for after the prompt, and 32.
            let expected = ((millis as f64 / 1000.0 - prefill) / 0.010 * 1.5).ceil() + 32.0;
            let planned = kept.last(planned).unwrap();
            assert!((planned - expected).abs() <= 1.0, "{planned} tokens in {millis} ms, expected {expected}");
        }
    });
}

#[test]
fn who_turns_out_to_be_faster_is_given_more() {
    let mut stage = Stage::paced(40_000, 0, 0);
    stage.complete(&request("x", 2, 10)).unwrap();
    stage.script.step.store(1000, Ordering::Relaxed);
    // Fifty tokens were expected, and memory set aside for 107.
    let ask = everything(&stage, 2, 2000);
    let answer = stage.complete(&ask).unwrap();
    assert!(stage.script.now() <= ask.deadline.unwrap());
    assert!(lengths(&answer).len() == 2 && lengths(&answer).iter().all(|n| *n > 1900), "{:?}", lengths(&answer));
    assert_eq!(stage.script.n_sequences(), 0);
}

#[test]
fn where_memory_ends_before_time_the_worst_make_way() {
    let mut stage = Stage::new(Script::paced(20_000, 0, 0), |config| config.max_kv_bytes = 450_000);
    let prompt = stage.complete(&request("x", 4, 10)).unwrap().usage.prompt_tokens;
    stage.script.step.store(500, Ordering::Relaxed);
    let answer = stage.complete(&everything(&stage, 4, 1000)).unwrap();
    let lengths = lengths(&answer);
    assert_eq!(lengths.len(), 4, "what is given up is part of the answer");
    assert!(lengths.iter().any(|n| *n > (450 - prompt) / 4), "{lengths:?}");
    assert!(stage.script.most_held() > 400, "{} of 450 tokens were used", stage.script.most_held());
    assert_eq!(stage.script.n_sequences(), 0);
}

/// Candidates that wait in the middle for memory go on as those that wait for nobody.
fn check_waiting(ask: impl Fn(Request) -> Request) {
    let mut stage = Stage::new(Script::paced(10_000, 0, 0), |config| config.max_kv_bytes = 1_000_000);
    let prompt = stage.complete(&request("x", 2, 10)).unwrap().usage.prompt_tokens;
    stage.script.step.store(1500, Ordering::Relaxed);
    // Half of the memory, for 150 steps; the other's two candidates are expected to have 60 tokens and have time for more.
    let half = stage.ask(&request("x", 2, 250));
    stage.turn();
    let rest = stage.ask(&ask(everything(&stage, 2, 1800)));
    stage.run();
    assert_eq!(lengths(&half.answer().unwrap()), [250; 2]);
    let rest = rest.answer().unwrap();
    assert!(lengths(&rest).iter().all(|n| *n > (1000 - 500 - 2 * prompt) / 2), "both went on: {:?}", lengths(&rest));
    let mut free = Stage::paced(10, 0, 0);
    let whole = free.complete(&ask(everything(&free, 2, 60_000))).unwrap().candidates;
    for (candidate, whole) in rest.candidates.iter().zip(&whole) {
        assert!(whole.text.starts_with(&candidate.text), "{}\n{}", candidate.text, whole.text);
    }
}

#[test]
fn who_needs_more_waits_for_others_to_leave() {
    check_waiting(|ask| ask);
}

#[cfg(feature = "constrained")]
#[test]
fn who_waits_in_the_middle_of_a_constraint_goes_on_with_it() {
    let shape = idiolect_sampling::ConstraintSpec::Regex(r"([\]\^]_`?)*".to_owned());
    check_waiting(|mut ask| {
        ask.sampling.constraint = Some(shape.clone());
        ask
    });
}

#[test]
fn memory_that_an_earlier_one_waits_for_is_not_given_to_later_ones() {
    let mut stage = Stage::new(Script::paced(10_000, 0, 0), |config| config.max_kv_bytes = 1_000_000);
    stage.script.step.store(1500, Ordering::Relaxed);
    let half = stage.ask(&request("x", 2, 250));
    stage.turn();
    // Takes the rest, and wants what the first gives back after 375 ms, too.
    let long = stage.ask(&everything(&stage, 2, 1800));
    stage.turn();
    // Needs more than is free before that.
    let ask = stage.due(request("x", 2, 150), 1000);
    let near = stage.ask(&ask);
    stage.until(|_| near.is_answered());
    assert!(stage.script.now() <= ask.deadline.unwrap());
    let near = near.answer().unwrap();
    assert_eq!(lengths(&near), [150; 2], "{near:?}");
    assert!(!long.is_answered());
    stage.run();
    assert_eq!(lengths(&half.answer().unwrap()), [250; 2]);
    let long = long.answer().unwrap();
    assert!(lengths(&long).iter().all(|n| *n > 350), "it was given the rest afterwards: {:?}", lengths(&long));
    assert_eq!(stage.script.n_sequences(), 0);
}

#[test]
fn more_candidates_than_may_grow_side_by_side_take_turns() {
    let all = Stage::paced(1000, 0, 100).complete(&request("x", 8, 12)).unwrap();
    let mut stage = Stage::new(Script::paced(1000, 0, 100), |config| config.max_batch = 3);
    let before = stage.n_steps();
    let asked = stage.ask(&request("x", 8, 12));
    let other = stage.ask(&request("x", 2, 3));
    stage.run();
    let answer = asked.answer().unwrap();
    assert_eq!(stage.script.most_candidates(before), 3);
    assert_eq!(answer.usage, all.usage);
    for (candidate, whole) in answer.candidates.iter().zip(&all.candidates) {
        assert_eq!(
            (candidate.index, &candidate.text, candidate.finish_reason),
            (whole.index, &whole.text, whole.finish_reason)
        );
    }
    assert_eq!((answer.candidates.len(), lengths(&other.answer().unwrap())), (8, vec![3; 2]));
    assert_eq!(stage.script.n_sequences(), 0);
}

#[test]
fn those_who_take_turns_keep_their_places_between_them() {
    // Candidates end at different times, and others come meanwhile.
    let letters = Stage::paced(1000, 0, 100).complete(&request("x", 1, 40)).unwrap().candidates[0].text.clone();
    let rarest = letters.chars().min_by_key(|letter| letters.matches(*letter).count()).unwrap();
    let until = |n| {
        let mut request = request("x", n, 40);
        (request.sampling.stop, request.sampling.seed) = (vec![rarest.to_string()], Some(5));
        request
    };
    let all = Stage::paced(1000, 0, 100).complete(&until(9)).unwrap();
    let ends = lengths(&all);
    assert!(ends.iter().any(|length| *length != ends[0]), "{ends:?}");
    // Memory for one lot and a little more.
    for max_kv_bytes in [1 << 30, 140 * TOKEN_BYTES] {
        let mut stage = Stage::new(Script::paced(1000, 0, 100), |config| {
            (config.max_batch, config.max_kv_bytes) = (3, max_kv_bytes);
        });
        let before = stage.n_steps();
        let asked = stage.ask(&until(9));
        let others: Vec<_> = (0..6).map(|_| stage.ask(&until(1))).collect();
        stage.run();
        assert_eq!(lengths(&asked.answer().unwrap()), ends);
        for other in others {
            assert_eq!(other.answer().unwrap().candidates.len(), 1);
        }
        assert_eq!(stage.script.most_candidates(before), 3);
        assert_eq!(stage.script.n_sequences(), 0);
    }
}

#[test]
fn turns_end_at_the_deadline() {
    // A lot of three takes twenty steps of ten milliseconds.
    for (millis, n) in [(150, 3), (300, 6), (390, 6), (450, 8), (2000, 8)] {
        let mut stage = Stage::new(Script::paced(10_000, 0, 0), |config| config.max_batch = 3);
        stage.complete(&request("x", 3, 4)).unwrap();
        let ask = stage.due(request("x", 8, 20), millis);
        let answer = stage.complete(&ask).unwrap();
        assert!(stage.script.now() <= ask.deadline.unwrap(), "{millis} ms");
        assert_eq!(answer.candidates.len(), n, "{millis} ms: {:?}", lengths(&answer));
        assert_eq!(stage.script.n_sequences(), 0);
    }
}

#[test]
fn who_cannot_grow_ends_alone() {
    for after in [0, 3] {
        let mut stage = Stage::new(Script::failing(Fault::Refused, after), |_| ());
        let sound = stage.ask(&request("x", 2, 20));
        let refused = stage.ask(&request(&"x".repeat(100), 2, 20));
        let last = stage.ask(&request("y", 1, 10));
        stage.run();
        assert_eq!(sound.answer().unwrap().candidates[1].text, "he".repeat(20));
        assert_eq!(lengths(&last.answer().unwrap()), [10]);
        let error = refused.answer().unwrap_err();
        assert!(matches!(error, Error::Internal { .. }), "{error}");
        assert_eq!(stage.script.n_sequences(), 0);
    }
}

#[test]
fn whatever_comes_together_ends_in_time_and_within_the_memory() {
    for round in 0..4u64 {
        let mut stage = Stage::new(Script::paced(2000, 300, 50), |config| {
            config.max_kv_bytes = 300_000;
            config.max_batch = 12;
        });
        stage.complete(&request("x", 2, 20)).unwrap();
        stage.script.step.store(if round % 2 == 0 { 500 } else { 6000 }, Ordering::Relaxed);
        let begun = stage.script.now();
        let mut asked = Vec::new();
        // Three come at a time, eleven milliseconds after those before.
        for wave in 0..4u64 {
            stage.until(|stage| stage.script.now() - begun >= std::time::Duration::from_millis(11 * wave));
            for i in (0..12u64).filter(|i| i % 4 == wave) {
                let (n, millis) = (1 + (i + round) as usize % 5, 40 + 67 * ((i * 7 + round) % 6));
                let ask = stage.due(request(&"x".repeat(1 + 9 * i as usize), n, 4000), millis);
                asked.push((n, ask.deadline.unwrap(), stage.ask(&ask)));
            }
        }
        while stage.turn() {
            let now = stage.script.now();
            for (_, deadline, asked) in &asked {
                // A step may have begun before.
                let slack = std::time::Duration::from_millis(400);
                assert!(asked.is_answered() || now < *deadline + slack, "{:?} late", now - *deadline);
            }
        }
        for (n, _, asked) in asked {
            match asked.answer() {
                Ok(answer) => assert!(answer.candidates.len() >= n.min(2)),
                // At that speed there may be time for more than the memory holds.
                Err(error) => assert!(matches!(error, Error::DeadlineExceeded | Error::InvalidRequest(_)), "{error}"),
            }
        }
        stage.complete(&request("x", 2, 20)).unwrap();
        assert_eq!(stage.script.n_sequences(), 0);
    }
}

#[test]
fn equal_prompts_wait_for_each_other_only_where_they_are_kept() {
    for (script, together) in [(Script::paced(1000, 0, 100), true), (Script::paced(1000, 0, 100).keeping(), false)] {
        let mut stage = Stage::new(script, |_| ());
        let text = "x".repeat(300);
        let asked = [0, 1].map(|_| stage.ask(&request(&text, 1, 3)));
        stage.run();
        asked.into_iter().for_each(|asked| assert!(asked.answer().is_ok()));
        assert_eq!(stage.script.steps().iter().any(|step| step.prompts == 2), together);
    }
}
