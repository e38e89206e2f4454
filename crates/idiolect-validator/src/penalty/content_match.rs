use std::sync::LazyLock;

use regex::RegexSet;
use serde::Deserialize;

use crate::python;

/// What stock openings cost.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpeningRules {
    /// Each; validators take 0.1.
    pub cost: f64,
    /// Within how many characters they count; validators look at 200.
    pub characters: usize,
}

/// Openings of models that talk about their task. In the original a missing comma joins the 13th and the 14th to one,
/// which next to nothing matches, so that a bare `task:` is free.
static OPENINGS: LazyLock<RegexSet> = LazyLock::new(|| {
    let patterns = [
        r"here(?:\s+is|\s*'s)\s+a\s+task",
        r"here(?:\s+is|\s*'s)\s+the\s+solution",
        r"here(?:\s+is|\s*'s)\s+my\s+question",
        r"what\s+have\s+we\s+learned\s+from\s+this\s+task\?",
        r"use\s+complete\s+sentences",
        r"the\s+question\s+was",
        r"use\s+proper\s+grammar",
        r"what\s+is\s+the\s+correct\s+order\s+of\s+the\s+key\s+points",
        r"sure!\s+her.+",
        r"solution\s+\(in\s+\w+\)",
        r"great\s+job!\s+here(?:'s| is)",
        r"keep\s+it\s+clear\s+and\s+concise.\s+Use\s+complete\s+sentences.",
        r"task\s*:i\s+can\s+help\s+you\s+with",
        r"what\s+did\s+I\s+learn\s+today\s*\?",
        r"paraphrase\s*:",
        r"your\s+task\s+now\s+is\s+to\s+write\s+a\s+tweet\s+about\s+the\s+previous\s+text",
        r"what\s+is\s+the\s+main\s+point\s+of\s+the\s+passage",
    ];
    RegexSet::new(patterns.map(|p| format!("(?i){}", python::pattern(p)))).expect("fixed patterns compile")
});

/// Returns what the stock openings at the beginning of a reply cost together.
#[must_use]
pub fn content_match(reply: &str, rules: OpeningRules) -> f64 {
    let opening: String = python::strip(reply).chars().take(rules.characters).flat_map(char::to_lowercase).collect();
    (0..OPENINGS.matches(&opening).iter().count()).fold(0.0, |sum, _| sum + rules.cost)
}
