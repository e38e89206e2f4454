//! The gate against figures recorded from the validators' own modules.

use serde_json::Value;

use super::*;

fn vectors(name: &str) -> Value {
    let path = format!("{}/../../tests/data/vectors/scoring/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[expect(clippy::cast_possible_truncation, reason = "the recorded figures are float32")]
fn floats(value: &Value) -> Option<Vec<f32>> {
    Some(value.as_array()?.iter().map(|v| v.as_f64().unwrap() as f32).collect())
}

#[track_caller]
fn near(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() < 1e-4, "{what}[{i}]: {a}, recorded {b}");
    }
}

/// Runs one recorded step through both profiles.
fn check_step(case: &str, step: &Value, embeddings: &[Embedding], histories: &mut [GateHistory; 2]) {
    for (version, history) in [("v1", 0), ("v2", 1)] {
        let profile = &GateProfile::built_in()[history];
        let what = |key: &str| format!("{case}: {key}_{version}");
        let historic = histories[history].rewards(embeddings);
        assert_eq!(historic.is_some(), !step[format!("historic_reward_{version}")].is_null(), "{case} {version}");
        let batch = profile.batch_rewards(embeddings);
        if let Some(recorded) = floats(&step[format!("batch_reward_{version}")]) {
            near(&batch, &recorded, &what("batch_reward"));
        } else {
            assert_eq!(embeddings.len(), 1, "only a batch of one makes v1 fail");
            assert_eq!(version, "v1");
        }
        if let (Some(ours), Some(recorded)) = (&historic, floats(&step[format!("historic_reward_{version}")])) {
            near(ours, &recorded, &what("historic_reward"));
        }
        let each = |f: &dyn Fn(f32, Option<f32>) -> f32| -> Vec<f32> {
            batch.iter().enumerate().map(|(i, &b)| f(b, historic.as_ref().map(|h| h[i]))).collect()
        };
        if let Some(recorded) = floats(&step[format!("reward_{version}")]) {
            near(&each(&|b, h| profile.product(b, h)), &recorded, &what("reward"));
        }
        let applied = each(&|b, h| profile.factor(b, h));
        if version == "v2" {
            near(&applied, &floats(&step["mask_v2"]).unwrap(), &what("mask"));
        } else {
            near(&applied, &each(&|b, h| profile.product(b, h)), &what("factor"));
        }
        histories[history].push_batch(embeddings);
        assert_eq!(histories[history].len() as u64, step["history_len_after"].as_u64().unwrap(), "{case}");
    }
}

fn histories(dimensions: usize, range: Option<(usize, usize)>) -> [GateHistory; 2] {
    GateProfile::built_in().map(|mut profile| {
        if let Some((skip, keep)) = range {
            (profile.history_skip, profile.history_keep) = (skip, keep);
        }
        GateHistory::new(&profile, dimensions)
    })
}

#[test]
fn batches_of_real_embeddings() {
    for (file, dimensions) in [("diversity.json", 384), ("diversity_mpnet.json", 768)] {
        for case in vectors(file)["cases"].as_array().unwrap() {
            let embeddings: Vec<Embedding> =
                case["embeddings"].as_array().unwrap().iter().map(|e| floats(e).unwrap()).collect();
            check_step(case["name"].as_str().unwrap(), case, &embeddings, &mut histories(dimensions, None));
        }
    }
}

/// The recorded histories are made of these vectors, by number.
#[expect(clippy::cast_possible_truncation, reason = "the recording made them float32")]
fn numbered(i: u64) -> Embedding {
    let i = i as f64;
    let raw: Vec<f32> = (0..16)
        .map(f64::from)
        .map(|j| (0.37 * (i + 1.0) * (j + 1.0)).sin() + 0.5 * (1.3 * (i + 1.0) + j).cos())
        .map(|v| v as f32)
        .collect();
    normalised(&raw).unwrap()
}

#[test]
fn histories_over_many_batches() {
    for case in vectors("diversity_history.json")["cases"].as_array().unwrap() {
        let range = &case["history_range"];
        let bound = |i: usize| usize::try_from(range[i].as_u64().unwrap()).unwrap();
        let mut histories = histories(16, Some((bound(0), bound(1))));
        for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let ids = step["ids"].as_array().unwrap();
            let embeddings: Vec<Embedding> = ids.iter().map(|id| numbered(id.as_u64().unwrap())).collect();
            check_step(&format!("{} step {i}", case["name"]), step, &embeddings, &mut histories);
        }
    }
}

#[test]
fn curves() {
    let maps = vectors("diversity_maps.json");
    let distances = floats(&maps["distance"]).unwrap();
    let profile = GateProfile::default();
    near(
        &distances.iter().map(|&d| profile.batch.at(d)).collect::<Vec<_>>(),
        &floats(&maps["batch"]).unwrap(),
        "batch",
    );
    near(
        &distances.iter().map(|&d| profile.historic.at(d)).collect::<Vec<_>>(),
        &floats(&maps["historic"]).unwrap(),
        "historic",
    );
}

#[test]
fn the_bound_lies_where_the_arithmetic_puts_it() {
    let profile = GateProfile::TEXT_PROMPTING_2_1;
    assert!((profile.batch.distance_at(0.2) - 0.065_343).abs() < 1e-6);
    assert!((profile.historic.distance_at(0.2) - 0.048_614).abs() < 1e-6);
    let factor_at_cosine = |cosine: f32| profile.factor(profile.batch.at(1.0 - cosine), Some(1.0));
    assert_eq!(factor_at_cosine(0.9346), 1.0);
    assert_eq!(factor_at_cosine(0.9347), 0.0);
}

#[test]
fn embeddings_without_direction_fail_the_gate_and_hurt_nobody() {
    let batch = vec![vec![1.0, 0.0], vec![0.0, 0.0], vec![f32::NAN, 0.0], vec![0.0, 1.0], vec![]];
    assert_eq!(batch_distances(&batch), [1.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!(batch_distances(&[]), Vec::<f32>::new());
}

#[test]
fn the_history_takes_no_embedding_without_direction_and_asks_for_none() {
    let profile = GateProfile { history_skip: 1, ..GateProfile::TEXT_PROMPTING_2_1 };
    let mut history = GateHistory::new(&profile, 2);
    let odd = [vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY, 0.0], vec![1.0], vec![1.0, 0.0, 0.0], vec![]];
    history.push_batch(&odd);
    assert!(history.is_empty());
    history.push_batch(&[vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 1.0]]);
    assert_eq!(history.rewards(&odd).unwrap(), [profile.historic.at(0.0); 6]);
    assert_eq!(history.rewards(&[vec![1.0, 0.0]]).unwrap(), [profile.historic.at(1.0)]);
    assert_eq!(history.rewards(&[]), Some(Vec::new()));
}

#[test]
fn which_of_the_nearest_counts_is_the_profiles() {
    let unit = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
    let batch = [unit(0.0), unit(10.0), unit(30.0)];
    let at = |degrees: f32| 1.0 - degrees.to_radians().cos();
    let distances = |batch_rank| {
        let profile = GateProfile { batch_rank, ..GateProfile::TEXT_PROMPTING_2_1 };
        let rewards = profile.batch_rewards(&batch);
        rewards.into_iter().map(|reward| profile.batch.distance_at(reward)).collect::<Vec<_>>()
    };
    near(&distances(1), &[at(10.0), at(10.0), at(20.0)], "nearest");
    near(&distances(2), &[at(30.0), at(20.0), at(30.0)], "second");
    near(&distances(3), &[0.0; 3], "more than there are");
    for (history_rank, expected) in [(1, Some(10.0)), (2, Some(20.0)), (3, Some(40.0)), (4, None)] {
        let profile = GateProfile { history_skip: 1, history_rank, ..GateProfile::TEXT_PROMPTING_2_1 };
        let mut history = GateHistory::new(&profile, 2);
        history.push_batch(&[unit(0.0), unit(10.0), unit(20.0), unit(40.0)]);
        let reward = history.rewards(&[unit(0.0), unit(0.0), unit(0.0)]).map(|rewards| rewards[0]);
        assert_eq!(reward, expected.map(|degrees| profile.historic.at(distance(&unit(0.0), &unit(degrees)))));
    }
}

#[test]
fn a_reply_that_came_alone_is_held_against_the_nearest_of_the_history() {
    let unit = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
    let profile = GateProfile { history_skip: 1, ..GateProfile::TEXT_PROMPTING_2_1 };
    let mut history = GateHistory::new(&profile, 2);
    let reward = |degrees: f32| profile.historic.at(distance(&unit(0.0), &unit(degrees)));
    history.push_batch(&[unit(50.0), unit(17.0)]);
    // It is not compared with before there is a second-nearest.
    assert_eq!(history.rewards(&[unit(0.0)]), None);
    history.push_batch(&[unit(18.5)]);
    let [nearest, second] = [reward(17.0), reward(18.5)];
    assert!(nearest < 0.1 && second > 0.8, "{nearest} {second}");
    assert_eq!(history.rewards(&[unit(0.0)]), Some(vec![nearest]));
    assert_eq!(history.rewards(&[unit(0.0), unit(0.0)]), Some(vec![second; 2]));
    assert_eq!(history.rewards_among(&[unit(0.0)], 2), Some(vec![second]));
    assert_eq!(history.rewards_among(&[unit(0.0)], 0), Some(vec![profile.historic.at(0.0)]));
}

#[test]
fn a_history_is_restored_as_it_was() {
    let profile = GateProfile { history_skip: 1, history_keep: 5, ..GateProfile::TEXT_PROMPTING_2_1 };
    let mut history = GateHistory::new(&profile, 16);
    history.push_batch(&(0..9).map(numbered).collect::<Vec<_>>());
    let rows: Vec<f32> = history.rows().flatten().copied().collect();
    let restored = GateHistory::restored(&profile, 16, &rows).unwrap();
    assert_eq!(restored.rows().collect::<Vec<_>>(), history.rows().collect::<Vec<_>>());
    let fewer = GateProfile { history_keep: 3, ..profile.clone() };
    assert_eq!(GateHistory::restored(&fewer, 16, &rows).unwrap().rows().len(), 3);
    let mut odd = rows.clone();
    odd[33] = 7.0;
    let error = GateHistory::restored(&profile, 16, &odd).unwrap_err();
    assert_eq!(error.index, 2);
    odd[2] = f32::NAN;
    assert_eq!(GateHistory::restored(&profile, 16, &odd).unwrap_err().index, 0);
}

#[test]
fn profiles_by_name() {
    for profile in GateProfile::built_in() {
        assert_eq!(profile.name.parse::<GateProfile>().unwrap(), profile);
    }
    assert!("v9".parse::<GateProfile>().unwrap_err().to_string().contains("\"v9\""));
}
