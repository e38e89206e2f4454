use std::sync::LazyLock;

use regex::RegexSet;

use crate::mask::has_foreign_label;
use crate::python;
use crate::task::TaskKind;

/// Marks with which a validator divides its own prompts. The second is what the original looks for, a slip included.
static MARKS: LazyLock<RegexSet> = LazyLock::new(|| {
    let patterns =
        [r"#+[\d\s]*QUESTION[\d\s]*:", r#"f"\\n#+[\d\s]*ANSWER[\d\s]*:"#, r"#+[\d\s]*SUMMARY[\d\s]*CONTEXT:"];
    RegexSet::new(patterns.map(|p| format!("(?i){}", python::pattern(p)))).expect("fixed patterns compile")
});

/// Returns 1 for a reply that has another task's label or a mark of the prompt's own in it, else 0.
#[must_use]
pub fn keyword_match(kind: TaskKind, reply: &str) -> f64 {
    f64::from(u8::from(has_foreign_label(kind, reply) || MARKS.is_match(reply)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_marks_are_found() {
        assert_eq!(keyword_match(TaskKind::Followup, "### QUESTION 1:\nWhy?"), 1.0);
        assert_eq!(keyword_match(TaskKind::Answer, "### summary context:\nSo."), 1.0);
        assert_eq!(keyword_match(TaskKind::Answer, "### THE END 1:\nSo."), 0.0);
        assert_eq!(keyword_match(TaskKind::Answer, ""), 0.0);
    }
}
