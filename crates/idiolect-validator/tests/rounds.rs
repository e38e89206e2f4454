//! What a validator remembers from step to step of a round, and no longer.

mod support;

use std::sync::Arc;

use idiolect_validator::task::TaskKind;
use idiolect_validator::{Missing, Models, Profile, Reply, StepTask, Validator};
use support::Told;

#[tokio::test]
async fn a_summary_begins_a_round_which_forgets_the_best_of_the_last() {
    let profile = Profile::from_toml("extends = \"openvalidators-1.2\"\nmasks = [\"blacklist\"]\n").unwrap();
    // The first reply is the best of each step.
    let models =
        Models { rewards: vec![Told::new("rlhf", std::iter::repeat_n(vec![1.0, 0.0], 8))], ..Models::default() };
    let mut validator = Validator::new(profile, models, Missing::Renormalise).unwrap();
    let mut masks = Vec::new();
    for _ in 0..2 {
        for (kind, best, other) in [
            (TaskKind::Augment, "A summary.", "Why?"),
            (TaskKind::Followup, "Why?", "When?"),
            (TaskKind::Answer, "Because.", "Why?"),
            (TaskKind::Followup, "Where?", "Why?"),
        ] {
            let task = StepTask::read("A prompt.", Some(kind)).unwrap();
            let report = validator.step(&task, &[Reply::new(0, best), Reply::new(1, other)]).await.unwrap();
            assert_eq!(report.best, Some(0));
            masks.push(report.factor("blacklist").unwrap().applied[1]);
        }
    }
    // The question counts once it is answered, and in the next round it is free again.
    assert_eq!(masks, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
}

#[tokio::test]
async fn a_round_that_cannot_be_begun_leaves_the_last_as_it_was() {
    let profile = Profile::from_toml("extends = \"openvalidators-1.2\"\nmasks = [\"blacklist\"]\n").unwrap();
    let told = Told::new("rlhf", [vec![1.0, 0.0], vec![1.0, 0.0]]);
    let models = Models { rewards: vec![Arc::<Told>::clone(&told) as _], ..Models::default() };
    let mut validator = Validator::new(profile, models, Missing::Renormalise).unwrap();
    let of = |kind| StepTask::read("A prompt.", Some(kind)).unwrap();
    for (kind, best) in [(TaskKind::Followup, "Why?"), (TaskKind::Answer, "So.")] {
        validator.step(&of(kind), &[Reply::new(0, best), Reply::new(1, "Other.")]).await.unwrap();
    }
    assert!(validator.step(&of(TaskKind::Augment), &[Reply::new(0, "x"), Reply::new(1, "y")]).await.is_err());
    told.next.lock().unwrap().push_back(vec![1.0, 0.0]);
    let report = validator.step(&of(TaskKind::Answer), &[Reply::new(0, "x"), Reply::new(1, "Why?")]).await.unwrap();
    assert_eq!(report.factor("blacklist").unwrap().applied, [1.0, 0.0]);
}
