use proptest::prelude::*;

use super::*;

/// Three prompts; `a` and `b` say nearly the same, `c` and `d` something of their own.
fn record() -> (Replies, Vec<Embedding>) {
    let (mut lines, mut embeddings) = (String::new(), Vec::new());
    for prompt in 0..3 {
        for (nth, (model, angle)) in
            [("a", 0.0_f32), ("b", 0.05), ("c", 0.8), ("d", 1.5), ("us", 0.1), ("us#1", 0.12)].into_iter().enumerate()
        {
            let label = if nth == 0 { ", \"q\": 0.5" } else { "" };
            lines += &format!("{{\"p\": {prompt}, \"m\": \"{model}\", \"t\": \"{model} {prompt}\"{label}}}\n");
            embeddings.push(vec![angle.cos(), angle.sin()]);
        }
    }
    (Replies::read(&mut lines.as_bytes()).unwrap(), embeddings)
}

fn us() -> Vec<String> {
    vec!["us".to_owned()]
}

const RULES: Rules = Rules { batch: 50, steps: 3, clones: 0, seed: 1 };

fn play(tournament: &Tournament<'_>, rules: Rules) -> (Vec<Standing>, Vec<StepRecord>) {
    let mut steps = Vec::new();
    let standings = tournament.play(&rules, &mut |step| steps.push(step)).unwrap();
    (standings, steps)
}

#[test]
fn everybody_is_scored_by_hand() {
    let (replies, embeddings) = record();
    let profile = Profile::text_prompting_2_1();
    let contestants = us();
    let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
    assert_eq!((tournament.n_prompts(), tournament.n_left_out(), tournament.n_models()), (3, 0, 4));
    let (standings, steps) = play(&tournament, RULES);
    assert_eq!(steps.len(), 6, "the population alone, and with us");
    let names: Vec<&str> = standings.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["us", "c", "d", "a", "b"]);
    // Without us two are masked, two pass; with us, who are near to the first two, three are masked.
    let of = |name: &str| standings.iter().find(|s| s.name == name).unwrap();
    assert_eq!((of("a").masked_share, of("c").masked_share, of("us").masked_share), (1.0, 0.0, 1.0));
    assert_eq!((of("c").place_mean, of("a").place_mean, of("us").place_mean), (1.5, 3.5, 4.0));
    assert_eq!((of("c").weight_share, of("us").weight_share, of("us").mean_reward), (0.5, 0.0, 0.0));
    assert_eq!((of("us").steps, of("a").mean_label, of("b").mean_label), (3, Some(0.5), None));
    let expected = f64::from(profile.gate.batch.at(1.0 - 0.05_f32.cos()));
    assert!((of("us").mean_batch_reward - expected).abs() < 1e-4);
    let Member { distance, batch_reward, masked, .. } = &steps[1].members[4];
    assert!((distance - (1.0 - 0.05_f32.cos())).abs() < 1e-5 && *masked && *batch_reward < 0.03);
    assert_eq!(steps[1].contestant.as_deref(), Some("us"));
}

#[test]
fn quality_criteria_and_ties_decide_places() {
    let (replies, embeddings) = record();
    let profile = Profile::text_prompting_2_1();
    // Of those that pass the second is the better one, until its penalties take half.
    let qualities: Vec<f32> = replies.all().iter().map(|r| if r.model == "d" { 0.9 } else { 0.6 }).collect();
    let penalties: Vec<Option<f64>> = replies.all().iter().map(|r| (r.model == "d").then_some(0.5)).collect();
    let contestants = us();
    let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
    let tournament = tournament.with_qualities(&qualities).unwrap();
    let place = |standings: &[Standing], name: &str| standings.iter().find(|s| s.name == name).unwrap().place_mean;
    let (by_quality, _) = play(&tournament, RULES);
    assert_eq!((place(&by_quality, "d"), place(&by_quality, "c"), place(&by_quality, "a")), (1.0, 2.0, 3.5));
    let (by_both, _) = play(&tournament.with_penalties(&penalties).unwrap(), RULES);
    assert_eq!((place(&by_both, "d"), place(&by_both, "c")), (2.0, 1.0));
    let d = by_both.iter().find(|s| s.name == "d").unwrap();
    assert!(
        (d.mean_reward - 0.45).abs() < 1e-6
            && d.mean_penalties == Some(0.5)
            && (d.mean_quality.unwrap() - 0.9).abs() < 1e-6
    );
    // Weights are by rewards: 0.6 against 0.45.
    assert!((d.weight_share - 0.45 / 1.05).abs() < 1e-6);
}

#[test]
fn what_is_beside_the_point_earns_nothing_but_hides_others() {
    let (replies, embeddings) = record();
    let profile = Profile::text_prompting_2_1();
    let irrelevant: Vec<bool> = replies.all().iter().map(|reply| ["a", "d"].contains(&reply.model.as_str())).collect();
    let tournament = Tournament::new(&replies, &embeddings, &[], &profile).unwrap();
    let (standings, _) = play(&tournament.with_irrelevant(&irrelevant).unwrap(), RULES);
    let of = |name: &str| standings.iter().find(|s| s.name == name).unwrap();
    assert_eq!((of("d").irrelevant_share, of("d").masked_share, of("d").mean_reward), (1.0, 0.0, 0.0));
    assert_eq!((of("b").irrelevant_share, of("b").masked_share), (0.0, 1.0), "near to one that is beside the point");
    assert_eq!((of("c").mean_reward, of("c").weight_share), (1.0, 1.0));
}

#[test]
fn clones_mask_each_other_and_come_from_the_record_first() {
    let (replies, mut embeddings) = record();
    // Alone we would pass.
    for (i, reply) in replies.all().iter().enumerate() {
        if reply.model.starts_with("us") {
            embeddings[i] = if reply.model == "us" { vec![0.0, -1.0, 0.4] } else { vec![0.5, -1.0, 0.4] };
        } else {
            embeddings[i].push(0.0);
        }
    }
    let profile = Profile::text_prompting_2_1();
    let contestants = us();
    let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
    let masked = |clones| play(&tournament, Rules { clones, ..RULES }).0[0].masked_share;
    assert_eq!((masked(0), masked(1), masked(2)), (0.0, 0.0, 1.0), "the first copy on record says something else");
    let (_, steps) = play(&tournament, Rules { clones: 2, batch: 4, ..RULES });
    let names: Vec<&str> = steps[1].members.iter().map(|m| m.name.as_str()).collect();
    assert_eq!((names.len(), &names[1..]), (4, &["us", "us#1", "us#2"][..]));
    assert_eq!(steps[1].members[3].distance, 0.0);
}

#[test]
fn calls_that_failed_earn_nothing_and_hide_nobody() {
    let (_, embeddings) = record();
    let mut lines = String::new();
    for prompt in 0..3 {
        for model in ["a", "b", "c", "d", "us", "us#1"] {
            // All that is near to `a` failed.
            let text = if ["b", "us"].contains(&model) { "" } else { model };
            lines += &format!("{{\"p\": {prompt}, \"m\": \"{model}\", \"t\": \"{text}\"}}\n");
        }
    }
    let replies = Replies::read(&mut lines.as_bytes()).unwrap();
    for profile in [Profile::text_prompting_2_1(), Profile::openvalidators_1_2()] {
        let contestants = us();
        let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
        let (standings, _) = play(&tournament, Rules { clones: 2, ..RULES });
        let of = |name: &str| standings.iter().find(|s| s.name == name).unwrap();
        assert_eq!((of("us").failed_share, of("us").masked_share, of("us").mean_reward), (1.0, 0.0, 0.0));
        assert_eq!((of("b").failed_share, of("b").weight_share), (1.0, 0.0));
        assert_eq!((of("a").failed_share, of("a").masked_share), (0.0, 0.0), "nobody is near any more");
    }
}

#[test]
fn batches_are_drawn_anew_and_the_same_by_one_seed() {
    let (replies, embeddings) = record();
    let profile = Profile::openvalidators_1_2();
    let tournament = Tournament::new(&replies, &embeddings, &[], &profile).unwrap();
    assert_eq!(tournament.n_models(), 6);
    let rules = Rules { batch: 3, steps: 30, ..RULES };
    let (standings, steps) = play(&tournament, rules);
    assert_eq!(play(&tournament, rules), (standings, steps.clone()));
    assert_ne!(play(&tournament, Rules { seed: 2, ..rules }).1, steps);
    for three in steps.chunks(3) {
        let mut prompts: Vec<&str> = three.iter().map(|step| step.prompt.as_str()).collect();
        prompts.sort_unstable();
        assert_eq!(prompts, ["0", "1", "2"], "each once before any is again");
    }
    assert!(steps.iter().all(|step| step.members.len() == 3));
    // Without a mask the product itself is earned.
    let member = &steps[0].members[0];
    assert!((member.reward - f64::from(member.batch_reward)).abs() < 1e-6);
}

#[test]
fn what_cannot_be_played_is_refused() {
    let (replies, embeddings) = record();
    let profile = Profile::text_prompting_2_1();
    let contestants = us();
    let refused = |rules: Rules| {
        let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
        tournament.play(&rules, &mut |_| ()).unwrap_err().to_string()
    };
    assert_eq!(refused(Rules { batch: 1, ..RULES }), "a batch of 1, expected 2 or more");
    assert_eq!(refused(Rules { clones: 3, batch: 4, ..RULES }), "3 clones in a batch of 4, expected at most 2");
    assert_eq!(refused(Rules { steps: 0, ..RULES }), "0 steps, expected 1 or more");
    let made = |contestants: &[String], n: usize| {
        Tournament::new(&replies, &embeddings[..n], contestants, &profile).err().unwrap().to_string()
    };
    assert_eq!(made(&us(), 3), "3 embeddings, expected one for each of 18 replies");
    assert_eq!(made(&["nobody".to_owned()], 18), "no reply is by nobody");
    let alone = Replies::read(&mut "{\"p\": 1, \"m\": \"us\", \"t\": \"x\"}\n".as_bytes()).unwrap();
    let error = Tournament::new(&alone, &embeddings[..1], &contestants, &profile).err().unwrap().to_string();
    assert_eq!(error, "there is no prompt that all of us and 1 other model answer");
    let tournament = Tournament::new(&replies, &embeddings, &[], &profile).unwrap();
    let error = tournament.with_qualities(&[0.5]).err().unwrap().to_string();
    assert_eq!(error, "1 qualities, expected one for each of 18 replies");
}

proptest! {
    #[test]
    fn places_share_out_and_weights_sum_to_one(
        batch in 2_usize..9, steps in 1_usize..12, seed in 0_u64..50, values in proptest::collection::vec(-1.0_f32..1.0, 36),
    ) {
        let (replies, _) = record();
        let embeddings: Vec<Embedding> = values.chunks(2).map(<[f32]>::to_vec).collect();
        let profile = Profile::text_prompting_2_1();
        let contestants = us();
        let tournament = Tournament::new(&replies, &embeddings, &contestants, &profile).unwrap();
        let (standings, steps) = play(&tournament, Rules { batch, steps, clones: 0, seed });
        for step in &steps {
            let n = step.members.len() as f64;
            let sum: f64 = step.members.iter().map(|member| member.place).sum();
            prop_assert!((sum - n * (n + 1.0) / 2.0).abs() < 1e-9);
            prop_assert!(step.members.len() <= batch);
        }
        let sum: f64 = standings.iter().filter(|s| !s.contestant).map(|s| s.weight_share).sum();
        prop_assert!(sum.abs() < 1e-9 || (sum - 1.0).abs() < 1e-9);
        for s in &standings {
            prop_assert!(s.place_p05 <= s.place_p95 && (0.0..=1.0).contains(&s.masked_share));
        }
    }
}
