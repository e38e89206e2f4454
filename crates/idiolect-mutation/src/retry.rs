//! Advice for one more try: what the model is asked for where repairs did not help enough.

use idiolect_validator::task::{ContentMatch, Criterion, Unit};

use crate::guard::{Breach, FlagKind, Rules, unit_name};

/// More words of a criterion than these are left out of the advice.
const MOST_WORDS: usize = 8;

/// Returns a short instruction that names what a text broke, or `None` where it loses no more than `threshold` of its reward, or
/// nothing that a model could be told. To be put after the prompt, once.
///
/// It says what to do and quotes no phrase of the reply's, since models repeat what they are told not to say.
///
/// ```
/// use idiolect_mutation::{Task, guard::Rules, retry};
/// use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
///
/// let prompt = text_prompting::Task {
///     kind: TaskKind::Answer,
///     base_text: "Why?".to_owned(),
///     criteria: vec![Criterion::Length { target: 20, unit: Unit::Words }, Criterion::Bullets],
/// };
/// let rules = Rules::detect(Task::Answer, &prompt.compose());
/// let advice = retry::advice(&rules, "Because of the light.", 0.1);
/// assert_eq!(advice.as_deref(), Some("Use about 20 words. Write a list with a dash before each point."));
/// assert_eq!(retry::advice(&rules, "Because of the light.", 0.6), None);
/// ```
#[must_use]
pub fn advice(rules: &Rules, text: &str, threshold: f32) -> Option<String> {
    if rules.loss(text).total <= f64::from(threshold) {
        return None;
    }
    let mut lines: Vec<String> = Vec::new();
    if !text.trim().is_empty() {
        lines.extend(rules.breaches(text).iter().filter_map(|breach| for_breach(rules, text, breach)));
    }
    for flag in rules.check(text) {
        lines.extend(for_flag(flag.kind).map(str::to_owned));
    }
    let mut seen = Vec::new();
    for line in lines {
        if !seen.contains(&line) {
            seen.push(line);
        }
    }
    (!seen.is_empty()).then(|| seen.join(" "))
}

fn for_breach(rules: &Rules, text: &str, breach: &Breach<'_>) -> Option<String> {
    let list = |words: &[String]| (words.len() <= MOST_WORDS).then(|| words.join(", "));
    Some(match breach.criterion {
        Criterion::Length { target, unit } => {
            let is_long = unit.count(&rules.scored(text)) > *target as usize;
            let name = unit_name(*unit);
            let name = if *target == 1 { name.trim_end_matches('s') } else { name };
            match (is_long, unit) {
                (true, Unit::Sentences | Unit::Paragraphs) => format!("Use no more than {target} {name}."),
                (true, _) => format!("Use at most {target} {name}."),
                (false, Unit::Sentences | Unit::Paragraphs) => format!("Write {target} {name}."),
                (false, _) => format!("Use about {target} {name}."),
            }
        }
        Criterion::Bullets => "Write a list with a dash before each point.".to_owned(),
        Criterion::Numbers => "Write a numbered list.".to_owned(),
        Criterion::NoLists => "Write plain prose without any list.".to_owned(),
        Criterion::EndsWithQuestionMark => "End with a question mark.".to_owned(),
        Criterion::NoQuestionMarks => "Write statements only, no questions.".to_owned(),
        Criterion::Words { place: ContentMatch::StartsWith, negated: false, words } => {
            format!("Begin with one of these words: {}.", list(words)?)
        }
        Criterion::Words { place: ContentMatch::EndsWith, negated: false, words } => {
            format!("End with one of these words: {}.", list(words)?)
        }
        Criterion::Words { place: ContentMatch::Includes, negated: false, words } => {
            format!("Use one of these words: {}.", list(words)?)
        }
        Criterion::Words { place: ContentMatch::StartsWith, negated: true, .. } => "Begin in another way.".to_owned(),
        Criterion::Words { place: ContentMatch::EndsWith, negated: true, .. } => "End in another way.".to_owned(),
        Criterion::Words { place: ContentMatch::Includes, negated: true, .. } => "Use other words.".to_owned(),
        Criterion::Other(_) => return None,
    })
}

const fn for_flag(kind: FlagKind) -> Option<&'static str> {
    match kind {
        FlagKind::Empty => Some("Write a full reply."),
        FlagKind::Echo | FlagKind::Blacklist => Some("Use your own words."),
        FlagKind::Keyword | FlagKind::KeywordMatch | FlagKind::TaskValidator | FlagKind::Label => {
            Some("Write no headings and no colons.")
        }
        FlagKind::Preamble | FlagKind::ContentMatch => Some("Begin with the content itself."),
        FlagKind::RoleLeak => Some("Write your own part only."),
        FlagKind::Irrelevant => Some("Keep to what the text is about."),
        // The prompt as it came has no such operator.
        FlagKind::Criteria | FlagKind::Forbidden => None,
    }
}

#[cfg(test)]
mod tests {
    use idiolect_validator::task::{TaskKind, text_prompting};

    use super::*;
    use crate::Task;

    #[track_caller]
    fn check(kind: TaskKind, criteria: Vec<Criterion>, text: &str, expected: Option<&str>) {
        let prompt = text_prompting::Task { kind, base_text: "A text of some words.".to_owned(), criteria };
        let rules = Rules::detect(Task::Unknown, &prompt.compose());
        assert_eq!(advice(&rules, text, 0.05).as_deref(), expected, "{text}");
    }

    #[test]
    fn advice_names_what_was_broken() {
        use TaskKind::{Answer, Augment, Followup};
        let words = |target| Criterion::Length { target, unit: Unit::Words };
        check(Answer, vec![words(9)], "It is so.", Some("Use about 9 words."));
        check(Answer, vec![words(2)], "It is so because of rain.", Some("Use at most 2 words."));
        check(Answer, vec![Criterion::NoQuestionMarks], "Is it so?", Some("Write statements only, no questions."));
        check(Augment, vec![], "The data: rain.", Some("Write no headings and no colons."));
        check(Augment, vec![], "", Some("Write a full reply. Use your own words."));
        let both = "Write plain prose without any list. Begin with the content itself.";
        check(Augment, vec![Criterion::NoLists], "Sure! Here it is: - a", Some(both));
        let starts = Criterion::Words {
            place: ContentMatch::StartsWith,
            negated: false,
            words: vec!["what".to_owned(), "why".to_owned()],
        };
        check(Followup, vec![starts], "Is it rain?", Some("Begin with one of these words: what, why."));
        check(Followup, vec![Criterion::Other("Be kind.".to_owned())], "Is it rain?", None);
        check(Augment, vec![words(3)], "Some of words.", None);
    }
}
