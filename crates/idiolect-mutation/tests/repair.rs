//! Repairs of recorded replies: those of SmolLM2-135M-Instruct to prompts with criteria.

#[path = "support/composed.rs"]
mod composed;

use composed::Answered;
use idiolect_mutation::guard::{self, Rules};
use idiolect_mutation::{FlagKind, Task, repair};

#[test]
fn criteria_penalties_are_at_most_half() {
    let prompts = composed::prompts();
    let (mut n, mut before, mut after) = (0, 0.0, 0.0);
    for line in include_str!("data/replies.jsonl").lines() {
        let Answered { prompt, reply } = serde_json::from_str(line).unwrap();
        let task = &prompts[prompt];
        let rules = Rules::detect(Task::Unknown, &task.compose());
        assert_eq!((rules.kind(), rules.criteria()), (Some(task.kind), &task.criteria[..]));
        let criteria = |text: &str| {
            let flags = rules.check(text);
            flags.iter().find(|flag| flag.kind == FlagKind::Criteria).map_or(0.0, |flag| f64::from(flag.penalty))
        };
        let repaired = repair::repair(&rules, &reply);
        let (lost, left) = (guard::penalty(&rules.check(&reply)), guard::penalty(&rules.check(&repaired.text)));
        assert!((lost - repaired.before).abs() < 1e-5 && (left - repaired.after).abs() < 1e-5);
        assert!(left <= lost, "prompt {prompt}");
        assert_eq!(repair::repair(&rules, &repaired.text).repairs, []);
        n += 1;
        before += criteria(&reply);
        after += criteria(&repaired.text);
    }
    assert!(n >= 60, "{n} replies");
    assert!(after <= before / 2.0, "{before} to {after}");
}
