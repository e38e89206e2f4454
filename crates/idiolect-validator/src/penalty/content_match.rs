use std::sync::LazyLock;

use regex::RegexSet;

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
    RegexSet::new(patterns.map(|pattern| format!("(?i){pattern}"))).expect("fixed patterns compile")
});

/// Returns 0.1 for each stock opening within the first 200 characters of a reply.
#[must_use]
pub fn content_match(reply: &str) -> f64 {
    let opening: String = reply.trim().chars().take(200).flat_map(char::to_lowercase).collect();
    (0..OPENINGS.matches(&opening).iter().count()).fold(0.0, |sum, _| sum + 0.1)
}
