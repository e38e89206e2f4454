//! Choices in populations of a few directions.

use super::*;

/// Three of ours, at angles in degrees, and rivals at others.
fn population(n_prompts: usize) -> (Replies, Vec<Embedding>) {
    let degrees: [(&str, f32); 8] =
        [("a", 0.0), ("a_x", 40.0), ("a_y", 80.0), ("r1", 2.0), ("r2", 41.0), ("r3", 3.0), ("r4", 120.0), ("r5", 1.0)];
    let (mut text, mut embeddings) = (String::new(), Vec::new());
    for prompt in 0..n_prompts {
        for (model, angle) in degrees {
            let label = if model == "a" { 0.5 } else { 0.4 };
            text += &format!("{{\"p\": {prompt}, \"m\": \"{model}\", \"t\": \"{model}\", \"q\": {label}}}\n");
            let angle = angle.to_radians();
            embeddings.push(vec![angle.cos(), angle.sin()]);
        }
    }
    (Replies::read(&mut text.as_bytes()).unwrap(), embeddings)
}

fn own() -> Vec<String> {
    ["a", "a_x", "a_y"].map(str::to_owned).to_vec()
}

#[test]
fn who_sees_more_is_masked_less() {
    let (replies, embeddings) = population(6);
    let own = own();
    let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    assert_eq!(experiment.prompts().len(), 6);
    assert!(experiment.run(Choice::Learned, 1, 0).picks.is_empty(), "no lessons, no choice");
    let share = |choice| experiment.run_with(choice, 3, 10, 1).share_masked();
    assert!(share(Choice::First) > 0.9);
    assert_eq!(share(Choice::Oracle), 0.0);
    let random = share(Choice::Random);
    assert!((0.4..0.7).contains(&random), "{random}");
    for choice in [Choice::Farthest, Choice::Selector] {
        assert!(share(choice) < 0.2, "{choice:?}: {}", share(choice));
        assert!(gap_closed(random, share(choice), 0.0) > 0.6);
    }
    let outcome = experiment.run_with(Choice::Oracle, 3, 10, 1);
    assert!((-0.11..-0.05).contains(&outcome.label_gained()), "{}", outcome.label_gained());
    assert!(outcome.distance() > 0.1 && outcome.picks.len() == 60);
}

#[test]
fn panels_are_the_same_for_all_choices_and_leave_somebody_hidden() {
    let (replies, embeddings) = population(2);
    let own = own();
    let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    let distances = |choice, seed| {
        experiment.run_with(choice, 2, 4, seed).picks.iter().map(|pick| pick.distance).collect::<Vec<_>>()
    };
    assert_eq!(distances(Choice::First, 1), distances(Choice::First, 1));
    assert_ne!(distances(Choice::First, 1), distances(Choice::First, 2));
    let all_but_one = experiment.run_with(Choice::First, 99, 3, 1);
    assert!(all_but_one.picks.iter().all(|pick| pick.distance < 1.0));
    assert_eq!(experiment.run(Choice::First, 9, 1).picks.len(), 2);
}

#[test]
fn what_cannot_be_an_experiment_is_said() {
    let (replies, embeddings) = population(1);
    let with = |own: &[&str], embeddings: &[Embedding]| {
        let own: Vec<String> = own.iter().map(|model| (*model).to_owned()).collect();
        let found = Experiment::new(&replies, embeddings, &own, GateProfile::default());
        found.map(drop).unwrap_err().to_string()
    };
    assert_eq!(with(&["a"], &embeddings[1..]), "7 embeddings, expected one for each of 8 replies");
    assert!(with(&["b"], &embeddings).contains("no reply is by b; there are a, a_x, a_y, r1"));
    assert!(with(&[], &embeddings).contains("one at least"));
    assert!(with(&["a", "a"], &embeddings).contains("expected different models"));
    let everybody = ["a", "a_x", "a_y", "r1", "r2", "r3", "r4", "r5"];
    assert_eq!(with(&everybody, &embeddings), "there is no prompt that all of ours and a rival answer");
}

#[test]
fn quality_alone_takes_the_best_whatever_rivals_say() {
    let (replies, embeddings) = population(3);
    let own = own();
    let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    assert!(experiment.run(Choice::BestOfK, 1, 0).picks.is_empty(), "no qualities, no choice");
    let of_model = |model: &str| match model {
        "a" => 0.9,
        "a_x" => 0.5,
        _ => 0.1,
    };
    let qualities: Vec<f32> = replies.all().iter().map(|reply| of_model(&reply.model)).collect();
    let outcome = experiment.clone().with_qualities(&qualities).run(Choice::BestOfK, 1, 0);
    assert!(outcome.picks.iter().all(|pick| pick.chosen == Some(0)));
    assert!((outcome.quality() - 0.9).abs() < 1e-6);
    assert_eq!((outcome.share_masked(), outcome.share_novel()), (1.0, 0.0));
    let far = experiment.run(Choice::Oracle, 1, 0);
    assert_eq!((far.share_novel(), far.quality().is_nan()), (1.0, true));
}

#[test]
fn ours_differ_from_each_other() {
    let (replies, embeddings) = population(2);
    let own = own();
    let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    let spread = experiment.spread();
    assert_eq!((spread.len(), spread[0].n_distinct), (2, 3));
    let cosines = [40.0_f64, 40.0, 80.0].map(|angle| angle.to_radians().cos());
    assert!((spread[0].pairwise.unwrap() - (1.0 - cosines.iter().sum::<f64>() / 3.0)).abs() < 1e-6);
    assert!(spread[0].vendi.unwrap() > 1.5 && spread[0].vendi.unwrap() < 3.0);
    let alike = ["r1", "r3", "r5"].map(str::to_owned);
    let experiment = Experiment::new(&replies, &embeddings, &alike, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    assert_eq!(experiment.spread()[0].n_distinct, 1);
}

#[test]
fn gaps_that_are_none_have_no_share() {
    assert_eq!(gap_closed(0.5, 0.25, 0.0), 0.5);
    assert!(gap_closed(0.2, 0.1, 0.2).is_nan());
}

#[test]
fn fewer_of_ours_are_as_if_the_others_had_never_answered() {
    let (replies, embeddings) = population(4);
    let all = own();
    let experiment = Experiment::new(&replies, &embeddings, &all, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    let some = ["a_x", "a"].map(str::to_owned);
    let narrowed = experiment.narrowed(&some).unwrap();

    let is_kept = |index: &usize| replies.all()[*index].model != "a_y";
    let kept: Vec<usize> = (0..replies.all().len()).filter(is_kept).collect();
    let line = |index: &usize| {
        let reply = &replies.all()[*index];
        format!(
            "{{\"p\": {}, \"m\": \"{}\", \"t\": \"x\", \"q\": {}}}\n",
            reply.prompt,
            reply.model,
            reply.label.unwrap()
        )
    };
    let text: String = kept.iter().map(line).collect();
    let fewer = Replies::read(&mut text.as_bytes()).unwrap();
    let embeddings: Vec<Embedding> = kept.iter().map(|&index| embeddings[index].clone()).collect();
    let expected = Experiment::new(&fewer, &embeddings, &some, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    for choice in [Choice::First, Choice::Random, Choice::Farthest, Choice::Selector, Choice::Oracle] {
        for n_visible in [0, 2] {
            let (found, expected) =
                (narrowed.run_with(choice, n_visible, 3, 7), expected.run_with(choice, n_visible, 3, 7));
            assert_eq!(found, expected, "{choice:?}, {n_visible} seen");
        }
    }
    let none_of_ours = ["r1".to_owned()];
    let error = experiment.narrowed(&none_of_ours).unwrap_err().to_string();
    assert_eq!(error, "no reply is by r1; there are a, a_x, a_y");
    assert!(experiment.narrowed(&[]).is_err());
}

#[test]
fn criteria_are_those_of_what_was_sent() {
    let (replies, embeddings) = population(2);
    let own = own();
    let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
    assert!(experiment.run(Choice::First, 1, 0).criteria().is_nan(), "nobody said");
    // The second prompt has none.
    let of = |reply: &crate::Recorded| match (reply.prompt.as_str(), reply.model.as_str()) {
        ("1", _) => None,
        (_, "a") => Some(0.3),
        (_, "a_x") => Some(0.6),
        _ => Some(0.0),
    };
    let criteria: Vec<Option<f64>> = replies.all().iter().map(of).collect();
    let experiment = experiment.with_criteria(&criteria);
    let taken = |choice| experiment.run(choice, 1, 0).criteria();
    assert!((taken(Choice::First) - 0.3).abs() < 1e-9 && (taken(Choice::Random) - 0.3).abs() < 1e-9);
    assert_eq!(taken(Choice::Oracle), 0.0, "80 degrees from most");
    assert_eq!(experiment.run(Choice::First, 1, 0).by_prompt(|pick| pick.criteria).len(), 1);
}
