use crate::task::TaskKind;

const ANSWER: [&str; 4] = ["answer:", "response:", "a:", "completion:"];
const QUESTION: [&str; 3] = ["question:", "query:", "q:"];
const SUMMARY: [&str; 4] = ["summary:", "paraphrase:", "paraphrasing:", "paraphrased:"];

/// Returns 0 for a reply that has another task's label in it, 1 for any other (opentensor/validators 1.2,
/// `openvalidators/reward/task_validator.py`). Labels are looked for anywhere: `data:` has the label `a:`. Equal to the
/// recording `task_validator.json`.
#[must_use]
pub fn task_validator(kind: TaskKind, reply: &str) -> f32 {
    f32::from(u8::from(!has_foreign_label(kind, reply)))
}

pub(crate) fn has_foreign_label(kind: TaskKind, reply: &str) -> bool {
    let reply = reply.to_lowercase();
    let any = |labels: &[&str]| labels.iter().any(|label| reply.contains(label));
    (kind != TaskKind::Answer && any(&ANSWER))
        || (kind != TaskKind::Followup && any(&QUESTION))
        || (kind != TaskKind::Augment && any(&SUMMARY))
}
