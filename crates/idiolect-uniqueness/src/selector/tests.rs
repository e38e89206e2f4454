use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::history::{ReplyHistory, StoredReply};
use crate::population::Panel;

const X: &[f32] = &[1.0, 0.0, 0.0];
const Y: &[f32] = &[0.0, 1.0, 0.0];
const Z: &[f32] = &[0.0, 0.0, 1.0];

fn c(embedding: &[f32], quality: f32) -> Candidate<'_> {
    Candidate { embedding: Some(embedding), quality, source: "m", distinctiveness: None }
}

fn select(candidates: &[Candidate<'_>], population: &Population<'_>) -> Selection {
    Selector::default().select(candidates, population).unwrap()
}

fn remembered(embeddings: &[&[f32]], prompt_hash: &str) -> ReplyHistory {
    let history = ReplyHistory::in_memory("e", 3, 100);
    for (i, embedding) in embeddings.iter().enumerate() {
        history.remember(&StoredReply {
            reply_id: format!("r{i}"),
            part: 0,
            caller: String::new(),
            prompt_hash: prompt_hash.to_owned(),
            encoder: "e".to_owned(),
            embedding: embedding.to_vec(),
            text: None,
            time_ms: 0,
        });
    }
    history
}

#[test]
fn nothing_and_one() {
    assert_eq!(Selector::default().select(&[], &Population::new("e")), None);
    let one = select(&[c(X, 0.4)], &Population::new("e"));
    assert_eq!((one.chosen, one.reason), (0, Reason::OnlyCandidate));
    let score = &one.scores[0];
    assert_eq!((score.distance, score.batch, score.historic, score.n_compared), (None, 1.0, None, 0));
    assert!(score.clears);
}

#[test]
fn identical_candidates_fall_back_to_the_better_text() {
    let selection = select(&[c(X, 0.4), c(X, 0.6), c(X, 0.6)], &Population::new("e"));
    assert_eq!((selection.chosen, selection.reason), (1, Reason::NoneClears));
    assert_eq!(selection.scores[0].distance, Some(0.0));
    assert!(selection.scores.iter().all(|s| !s.clears && s.predicted < 0.02));
}

#[test]
fn above_the_gate_only_quality_counts() {
    let near_enough: &[f32] = &[0.9, 0.436, 0.0];
    let selection = select(&[c(X, 0.5), c(near_enough, 0.9), c(Z, 0.8)], &Population::new("e"));
    assert_eq!((selection.chosen, selection.reason), (1, Reason::BestThatClears));
    assert_eq!(selection.ranking, [1, 2, 0]);
}

#[test]
fn quality_zero_clears_nothing() {
    let selection = select(&[c(X, 0.0), c(Y, 0.5), c(&[0.01, 1.0, 0.0], 0.4)], &Population::new("e"));
    assert_eq!((selection.chosen, selection.reason), (1, Reason::NoneClears));
}

#[test]
fn what_is_known_in_time_decides() {
    let history = remembered(&[Z, Z], "p");
    let population = Population::new("e").with_history(&history, "p").unwrap();
    // Near enough to what was said before to fail, far enough from the others to clear.
    let candidates = [c(Y, 0.5), c(Z, 0.9), c(X, 0.6)];
    let whole = select(&candidates, &population);
    assert_eq!((whole.ranking.as_slice(), whole.n_unsearched), (&[2, 0, 1][..], 0));
    let selector = Selector::default();
    assert_eq!(selector.select_until(&candidates, &population, Instant::now() + Duration::from_secs(60)), Some(whole));

    // Each search of the history looks at the clock once; there are two for each candidate.
    let cut_after = |n: usize| {
        let looks = std::cell::Cell::new(0);
        selector.select_with(&candidates, &population, &|| looks.replace(looks.get() + 1) >= n).unwrap()
    };
    // Nothing is known but each other: quality decides, and nothing is known to clear.
    let none = cut_after(0);
    assert_eq!((none.chosen, none.reason, none.n_unsearched), (1, Reason::NoneClears, 3));
    assert!(none.scores.iter().all(|s| !s.clears && s.n_compared == 2 && s.history_distance.is_none()));
    assert_eq!(Some(none), selector.select_until(&candidates, &population, Instant::now()));
    // The first is known to clear: better than what may be better.
    for n in [2, 3] {
        let first = cut_after(n);
        assert_eq!((first.chosen, first.reason, first.n_unsearched), (0, Reason::BestThatClears, 2));
        assert_eq!((first.scores[0].n_compared, first.scores[1].n_compared), (4, 2));
    }
    assert_eq!(cut_after(4).n_unsearched, 1);
    assert_eq!(cut_after(6), select(&candidates, &population));
}

#[test]
fn the_margin_asks_for_more_than_the_gate() {
    // Cosine 0.93: passes at 0.9347 but not at 0.92.
    let near: &[f32] = &[0.93, 0.367_559_5, 0.0];
    let candidates = [c(X, 0.9), c(near, 0.8)];
    assert!(!select(&candidates, &Population::new("e")).scores[0].clears);
    let bare = Selector::new(SelectorConfig { margin: 0.0, ..SelectorConfig::default() });
    assert!(bare.select(&candidates, &Population::new("e")).unwrap().scores[0].clears);
}

#[test]
fn minilm_distances_are_scaled_to_the_validators() {
    // Distance 0.1 in MiniLM is about 0.06 in mpnet: masked.
    let near: &[f32] = &[0.9, 0.435_889_9, 0.0];
    let selection = select(&[c(X, 0.9), c(near, 0.8)], &Population::new("all-MiniLM-L6-v2"));
    assert!(!selection.scores[0].clears);
    assert!((selection.scores[0].distance.unwrap() - 0.1).abs() < 1e-5, "the raw distance is reported");
    assert!(select(&[c(X, 0.9), c(near, 0.8)], &Population::new("all-mpnet-base-v2")).scores[0].clears);
}

#[test]
fn panel_and_earlier_replies_count_as_rivals() {
    let mut panel = Panel::new("e", 3);
    panel.push("rival", &X.to_vec());
    let history = remembered(&[Y], "p");
    let population = Population::new("e").with_panel(&panel).unwrap().with_history(&history, "p").unwrap();
    let selection = select(&[c(X, 0.9), c(Y, 0.8), c(Z, 0.1)], &population);
    assert_eq!(selection.chosen, 2);
    assert_eq!(selection.scores[0].nearest, Some(Neighbour::Panel("rival".to_owned())));
    assert_eq!(selection.scores[1].nearest, Some(Neighbour::Earlier("r0".to_owned())));
    assert_eq!(selection.scores[2].n_compared, 2);
}

#[test]
fn where_rivals_are_seen_candidates_do_not_stand_for_them() {
    let mut panel = Panel::new("e", 3);
    panel.push("rival", &Z.to_vec());
    let twins = [c(X, 0.9), c(X, 0.8)];
    let alone = select(&twins, &Population::new("e"));
    assert!(!alone.scores[0].clears, "as far as is known others say it, too");
    let beside = select(&twins, &Population::new("e").with_panel(&panel).unwrap());
    assert_eq!((beside.chosen, beside.reason), (0, Reason::BestThatClears));
    assert_eq!(beside.scores[0].nearest, Some(Neighbour::Panel("rival".to_owned())));
    assert_eq!(beside.scores[0].n_compared, 1);
}

#[test]
fn the_second_earlier_copy_costs_the_reward() {
    for (copies, historic) in [(1, None), (2, Some(0.0))] {
        let history = remembered(&vec![X; copies], "another prompt");
        let population = Population::new("e").with_history(&history, "p").unwrap();
        let selection = select(&[c(X, 0.9), c(Y, 0.1)], &population);
        assert_eq!(selection.scores[0].historic.map(|h| h.round()), historic, "{copies} copies");
        assert_eq!(selection.chosen, copies - 1, "{copies} copies");
    }
}

#[test]
fn embeddings_without_direction_count_as_repeats() {
    let selection =
        select(&[c(&[0.0; 3], 0.9), c(&[f32::NAN; 3], 0.9), c(X, 0.2), c(&[1.0], 0.1)], &Population::new("e"));
    assert_eq!(selection.chosen, 2);
    assert_eq!(selection.scores[0].distance, Some(0.0));
    assert!(!selection.scores[1].clears);
    let nan = select(&[c(X, f32::NAN), c(Y, 0.1)], &Population::new("e"));
    assert_eq!((nan.chosen, nan.scores[0].quality), (1, 0.0));
}

#[test]
fn without_embeddings_quality_decides() {
    let bare = |quality| Candidate { embedding: None, quality, source: "m", distinctiveness: None };
    let selection = select(&[bare(0.1), bare(0.9)], &Population::new("e"));
    assert_eq!((selection.chosen, selection.reason), (1, Reason::QualityOnly));
    assert_eq!(selection.scores[0].distance, None);
}

#[test]
fn the_product_profile_weighs_distance_against_quality() {
    let selector = Selector::new(SelectorConfig { profile: GateProfile::OPENVALIDATORS_1_2, ..Default::default() });
    // Distance 0.1 halves the reward under the product; under the mask it is as good as any.
    let near: &[f32] = &[0.9, 0.435_889_9, 0.0];
    let candidates = [c(X, 0.6), c(near, 0.6), c(Z, 0.4)];
    let selection = selector.select(&candidates, &Population::new("e")).unwrap();
    assert_eq!((selection.chosen, selection.reason), (2, Reason::HighestExpected));
    assert_eq!(select(&candidates, &Population::new("e")).chosen, 0);
}

/// The distance from which on the default profile lets pass.
fn bound() -> f32 {
    let profile = GateProfile::default();
    profile.batch.distance_at(profile.pass_above)
}

#[test]
fn the_chance_to_be_masked_rests_on_what_stands_for_rivals() {
    const MPNET: &str = "all-mpnet-base-v2";
    // Distance 0.09: above the gate, but not by much.
    let near: &[f32] = &[0.91, 0.414_608, 0.0];
    let own = [c(X, 0.9), c(near, 0.5), c(Z, 0.5)];
    let alone = select(&own, &Population::new(MPNET));
    let unknown = Calibration::MPNET.masked(None, bound(), 0, 49);
    // Candidates of one model are no rivals, but one that is far from the others is less usual. The mean logarithms of distances are
    // ln(0.09) / 2 for the first two and 0 for the third.
    let nearer = 0.09_f64.ln() / 2.0 / 3.0;
    for (score, further) in alone.scores.iter().zip([nearer, nearer, -2.0 * nearer]) {
        let expected = Calibration::MPNET.beside_siblings(unknown, further, 0);
        assert!((score.masked.unwrap().p - expected.p).abs() < 1e-4, "{alone:?} {expected:?}");
    }
    let two = select(&own[..2], &Population::new(MPNET));
    assert!(two.scores.iter().all(|score| score.masked == Some(unknown)), "two are equally far from each other");
    assert!(alone.vendi.is_some_and(|vendi| vendi > 1.5 && vendi < 3.0), "{alone:?}");

    let of_another = [c(X, 0.9), Candidate { source: "another", ..c(near, 0.5) }, c(Z, 0.5)];
    let beside = select(&of_another, &Population::new(MPNET));
    let p = |selection: &Selection, i: usize| selection.scores[i].masked.unwrap().p;
    assert!(p(&beside, 0) > p(&alone, 0) && p(&beside, 2) < p(&alone, 2), "{beside:?}");

    // Two rivals are seen, one of them so near that quality 0.9 is not worth the risk.
    let mut panel = Panel::new(MPNET, 3);
    panel.push("rival", &near.to_vec());
    panel.push("other", &Y.to_vec());
    let known = Population::new(MPNET).with_panel(&panel).unwrap();
    let candidates = [c(X, 0.9), c(Z, 0.7)];
    let chosen = select(&candidates, &known);
    assert!(chosen.scores.iter().all(|score| score.clears), "{chosen:?}");
    assert_eq!((chosen.chosen, chosen.reason), (1, Reason::BestThatClears));
    // Where those two are all there are, it is none.
    let all = select(&candidates, &known.with_rivals(2));
    assert_eq!((all.chosen, p(&all, 0), p(&all, 1)), (0, 0.0, 0.0));
    // Nothing is known of this encoder.
    assert_eq!(select(&candidates, &Population::new("e")).scores[0].masked, None);
    let borrowed = SelectorConfig { calibration: Some(Calibration::MPNET), ..SelectorConfig::default() };
    let borrowed = Selector::new(borrowed).select(&candidates, &Population::new("e")).unwrap();
    assert_eq!(borrowed.scores[0].masked, Some(unknown));
}

#[test]
fn where_no_rival_is_seen_plain_answers_tell_how_usual_a_candidate_is() {
    const MPNET: &str = "all-mpnet-base-v2";
    // Distance 0.09 from the plain answer: above the gate, but not by much.
    let near: &[f32] = &[0.91, 0.414_608, 0.0];
    let candidates = [c(X, 0.4), c(near, 0.9), c(Z, 0.6)];
    let p = |selection: &Selection, i: usize| selection.scores[i].masked.unwrap().p;
    let blind = select(&candidates, &Population::new(MPNET));
    assert_eq!(blind.chosen, 2, "the best by quality is beside the plain answer: {blind:?}");
    let expected = |to_plain: f32, further: [f64; 3]| {
        let level = Calibration::MPNET.masked_beside_plain(to_plain, bound(), 49).unwrap();
        further.map(|further| Calibration::MPNET.beside_siblings(level, further, 0).p)
    };
    // The others are 0.09 and 1 from the plain answer, 0.3 in the mean of logarithms: answers to this prompt differ much.
    let told = select(&candidates, &Population::new(MPNET).with_plain(&[0]));
    assert_eq!((told.chosen, told.reason), (2, Reason::BestThatClears), "{told:?}");
    let nearer = 0.09_f64.ln() / 6.0;
    for (i, expected) in expected(0.3, [nearer, nearer, -2.0 * nearer]).into_iter().enumerate() {
        assert!((p(&told, i) - expected).abs() < 1e-3 && p(&told, i) < p(&blind, i), "{told:?} {expected}");
    }
    // Where all are near to it they hardly differ, and any of them is likely to be masked.
    let alike = select(&candidates[..2], &Population::new(MPNET).with_plain(&[0]));
    for (i, expected) in expected(0.09, [0.0; 3]).into_iter().take(2).enumerate() {
        assert!((p(&alike, i) - expected).abs() < 1e-3 && p(&alike, i) > p(&blind, 2), "{alike:?} {expected}");
    }

    // Several answers of a model are one voice: their mean counts, as one answer did in the figures.
    let two = [c(near, 0.5), c(X, 0.5), c(Y, 0.5)];
    let two = select(&two, &Population::new(MPNET).with_plain(&[0, 1]));
    let to_y = 1.0 - 0.414_608_f32;
    let mean = (to_y + 1.0) / 2.0;
    let means = [(0.09_f64 * f64::from(to_y)).ln() / 2.0, 0.09_f64.ln() / 2.0, f64::from(to_y).ln() / 2.0];
    let further = means.map(|own| own - means.iter().sum::<f64>() / 3.0);
    for (i, expected) in expected(mean, further).into_iter().enumerate() {
        assert!((p(&two, i) - expected).abs() < 1e-3, "{two:?} {expected}");
    }

    // Another model's plain answer is a rival that is seen, and rivals that are seen tell more.
    let mut panel = Panel::new(MPNET, 3);
    panel.push("rival", &Y.to_vec());
    let seen = Population::new(MPNET).with_panel(&panel).unwrap();
    assert_eq!(select(&candidates, &seen.with_plain(&[0])), select(&candidates, &seen));
    let of_another = [Candidate { source: "another", ..c(X, 0.4) }, c(near, 0.9), c(Z, 0.6)];
    let alone = Population::new(MPNET);
    assert_eq!(select(&of_another, &alone.with_plain(&[0])), select(&of_another, &alone));
    // Places that are none, and a calibration without figures for it, change nothing.
    assert_eq!(select(&candidates, &alone.with_plain(&[7, 1 << 40])), blind);
    let without = Calibration { plain: None, ..Calibration::MPNET };
    let without = SelectorConfig { calibration: Some(without), ..SelectorConfig::default() };
    assert_eq!(Selector::new(without).select(&candidates, &alone.with_plain(&[0])), Some(blind));
}

#[test]
fn what_other_prompts_taught_moves_the_chance() {
    const MPNET: &str = "all-mpnet-base-v2";
    let told = |learnt: [Option<f64>; 3]| {
        let with = |e, distinctiveness| Candidate { distinctiveness, ..c(e, 0.5) };
        select(&[with(X, learnt[0]), with(Y, learnt[1]), with(Z, learnt[2])], &Population::new(MPNET).with_rivals(49))
    };
    let untold = told([None; 3]);
    assert_eq!(untold.chosen, 0, "all are alike, the first is taken");
    let p = |selection: &Selection, i: usize| selection.scores[i].masked.unwrap().p;
    // Only differences count; of one that nothing is said of nothing changes, and what is no number says nothing.
    let by = told([Some(5.0), Some(6.0), None]);
    assert_eq!((by.chosen, by.scores[1].distinctiveness, by.scores[2].distinctiveness), (1, Some(0.5), None));
    let rate = |p: f32| -(-f64::from(p)).ln_1p();
    assert!((rate(p(&by, 1)) / rate(p(&untold, 1)) - (-0.5_f64).exp()).abs() < 1e-4);
    assert!((rate(p(&by, 0)) / rate(p(&untold, 0)) - 0.5_f64.exp()).abs() < 1e-4);
    assert_eq!(p(&by, 2), p(&untold, 2));
    assert_eq!(told([Some(f64::NAN), None, Some(2.0)]).scores[2].distinctiveness, Some(0.0));
    // Beyond all that anything was learnt from it is cut off.
    assert_eq!(told([Some(-1e9), Some(1e9), None]).scores[1].distinctiveness, Some(3.0));

    // A rival that is too near stays certain.
    let mut panel = Panel::new(MPNET, 3);
    panel.push("rival", &X.to_vec());
    let seen = Population::new(MPNET).with_panel(&panel).unwrap();
    let best =
        [Candidate { distinctiveness: Some(2.0), ..c(X, 0.5) }, Candidate { distinctiveness: Some(0.0), ..c(Y, 0.5) }];
    let seen = select(&best, &seen);
    assert_eq!((seen.chosen, p(&seen, 0)), (1, 1.0));
}

#[test]
fn a_costly_history_makes_masking_more_likely() {
    const MPNET: &str = "all-mpnet-base-v2";
    let history = ReplyHistory::in_memory(MPNET, 3, 100);
    // Second-nearest at 0.0486: the historic reward is about 0.2, so that the batch reward has to be nearly 1.
    let near: &[f32] = &[0.9514, 0.307_96, 0.0];
    for i in 0..2 {
        history.remember(&StoredReply {
            reply_id: format!("r{i}"),
            part: 0,
            caller: String::new(),
            prompt_hash: String::new(),
            encoder: MPNET.to_owned(),
            embedding: near.to_vec(),
            text: None,
            time_ms: 0,
        });
    }
    let population = Population::new(MPNET).with_history(&history, "p").unwrap();
    let selection = select(&[c(X, 0.9), c(Z, 0.9)], &population);
    let p = |i: usize| selection.scores[i].masked.unwrap().p;
    assert!(selection.scores[0].historic.is_some_and(|h| h < 0.25), "{selection:?}");
    // Without a rival in sight and far from all that was sent, it is that of the whole population.
    assert_eq!(p(1), Calibration::MPNET.masked(None, bound(), 0, 49).p);
    assert!(p(0) > p(1) + 0.1, "{selection:?}");
}

#[test]
fn another_than_the_nearest_counts_under_a_profile_that_says_so() {
    const MPNET: &str = "all-mpnet-base-v2";
    let profile = GateProfile { batch_rank: 2, ..GateProfile::TEXT_PROMPTING_2_1 };
    let selector = Selector::new(SelectorConfig { profile, ..SelectorConfig::default() });
    let copies = [c(X, 0.9), c(X, 0.8), c(Y, 0.1)];
    let selection = selector.select(&copies, &Population::new(MPNET)).unwrap();
    let first = &selection.scores[0];
    assert_eq!((&first.nearest, first.distance), (&Some(Neighbour::Sibling(2)), Some(1.0)), "one copy is free");
    assert_eq!((selection.chosen, selection.reason), (0, Reason::BestThatClears));
    assert_eq!(first.masked, None, "the chance is that of the nearest rival");

    // Ranks go through all sources together, and as deep into each as needed.
    let mut panel = Panel::new(MPNET, 3);
    panel.push("same", &X.to_vec());
    panel.push("again", &vec![1.0, 0.01, 0.0]);
    let known = Population::new(MPNET).with_panel(&panel).unwrap();
    let selection = selector.select(&[c(X, 0.9), c(Y, 0.1)], &known).unwrap();
    assert_eq!(selection.scores[0].nearest, Some(Neighbour::Panel("again".to_owned())));
    assert_eq!((selection.chosen, selection.scores[0].clears), (1, false));
    let alone = selector.select(&[c(X, 0.9), c(X, 0.8)], &Population::new(MPNET)).unwrap();
    assert_eq!((&alone.scores[0].nearest, alone.scores[0].batch), (&None, 1.0), "nothing is known of a second");
}

fn any_candidates() -> impl Strategy<Value = Vec<(Vec<f32>, f32)>> {
    proptest::collection::vec((proptest::collection::vec(proptest::num::f32::ANY, 0..5), proptest::num::f32::ANY), 1..7)
}

fn sane_candidates() -> impl Strategy<Value = Vec<(Vec<f32>, f32)>> {
    proptest::collection::vec((proptest::collection::vec(-1.0_f32..1.0, 3), 0.01_f32..1.0), 2..7)
}

proptest! {
    #[test]
    fn scores_are_in_range_and_the_choice_is_repeatable(raw in any_candidates()) {
        let candidates: Vec<Candidate<'_>> = raw.iter().map(|(e, q)| c(e, *q)).collect();
        let history = remembered(&[X, Y, Z], "p");
        let population = Population::new("e").with_history(&history, "p").unwrap();
        let selection = select(&candidates, &population);
        prop_assert_eq!(&selection, &select(&candidates, &population));
        prop_assert_eq!(selection.chosen, selection.ranking[0]);
        let mut all = selection.ranking.clone();
        all.sort_unstable();
        prop_assert_eq!(all, (0..candidates.len()).collect::<Vec<_>>());
        for score in &selection.scores {
            for value in [Some(score.batch), score.historic, score.distance, score.history_distance,
                          Some(score.predicted), Some(score.quality)].into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&value), "{score:?}");
            }
        }
    }

    #[test]
    fn a_repeat_is_least_unique(raw in sane_candidates(), repeated in 0_usize..7) {
        prop_assume!(raw.iter().all(|(e, _)| crate::vectors::normalised(e).is_some()));
        let repeated = repeated % raw.len();
        let mut panel = Panel::new("e", 3);
        panel.push("same", &raw[repeated].0);
        let candidates: Vec<Candidate<'_>> = raw.iter().map(|(e, q)| c(e, *q)).collect();
        let selection = select(&candidates, &Population::new("e").with_panel(&panel).unwrap());
        let own = selection.scores[repeated].distance.unwrap();
        prop_assert!(own < 1e-6);
        for score in &selection.scores {
            prop_assert!(score.distance.unwrap() >= own - 1e-6);
        }
    }

    #[test]
    fn one_that_clears_beats_one_that_does_not(raw in sane_candidates()) {
        let candidates: Vec<Candidate<'_>> = raw.iter().map(|(e, q)| c(e, *q)).collect();
        let selection = select(&candidates, &Population::new("e"));
        let some_clear = selection.scores.iter().any(|s| s.clears);
        prop_assert_eq!(some_clear, selection.scores[selection.chosen].clears);
    }
}

#[test]
fn replies_to_other_prompts_are_kept_away_from_and_no_rivals_that_are_seen() {
    const MPNET: &str = "all-mpnet-base-v2";
    let mut panel = Panel::new(MPNET, 3);
    panel.push("won before", &vec![1.0, 0.0, 0.0]);
    let near = [1.0, 0.1, 0.0];
    let candidates = [
        Candidate { embedding: Some(&near), quality: 0.9, source: "m", distinctiveness: None },
        Candidate { embedding: Some(&[0.0, 0.0, 1.0]), quality: 0.5, source: "m", distinctiveness: None },
    ];
    let nothing = select(&candidates, &Population::new(MPNET));
    for (population, whom) in [
        (Population::new(MPNET).with_quoted(&panel).unwrap(), Neighbour::Quoted("won before".to_owned())),
        (Population::new(MPNET).with_elsewhere(&panel).unwrap(), Neighbour::Panel("won before".to_owned())),
    ] {
        let selection = select(&candidates, &population);
        assert_eq!((selection.chosen, selection.scores[0].nearest.as_ref()), (1, Some(&whom)));
        assert!(!selection.scores[0].clears && selection.scores[0].n_compared == 2);
        assert_eq!(selection.scores[0].masked, nothing.scores[0].masked);
    }
    assert_eq!(nothing.chosen, 0);
}
