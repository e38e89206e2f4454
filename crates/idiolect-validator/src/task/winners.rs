//! Winning replies that later prompts of a round quote.
//!
//! The best summary of a round stands in all its later prompts, the best question in the prompt for its answer, and in
//! openvalidators 1.2 and earlier versions of text-prompting 2 questions and answers in all prompts after that: other miners'
//! replies, and those that were paid for.

use crate::python;

use super::{Prompt, TaskKind, openvalidators, text_prompting};

/// What openvalidators 1.2 puts between the summary and what was asked before.
const PREVIOUS: &str = "\nPrevious Question \nQuestion:";
const NEXT: &str = "\nQuestion:";
const ANSWER: &str = "\nAnswer:";
/// The heading that text-prompting 2.1 puts above a summary.
const SUMMARY: &str = "### SUMMARY CONTEXT:\n";

/// A reply that had the highest reward of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Winner<'a> {
    /// What it was the reply to.
    pub kind: TaskKind,
    /// The reply as the validator quotes it: without white space around it, and questions cut as version 2.1 cuts them.
    pub text: &'a str,
}

impl Prompt {
    /// Returns the winning replies that the prompt quotes, in the order of their steps; none for a prompt that quotes none
    /// or is unknown.
    ///
    /// A quoted reply that has a template's own headings in it may be divided there.
    ///
    /// # Examples
    /// ```
    /// use idiolect_validator::task::{Prompt, TaskKind, Winner, openvalidators};
    ///
    /// let context = "Leaves make sugar.".to_owned();
    /// let task = openvalidators::Task::Answer { context, question: "Out of what?".to_owned() };
    /// let prompt = Prompt::parse(&task.compose());
    /// let quoted = prompt.winners();
    /// assert_eq!(quoted[0], Winner { kind: TaskKind::Augment, text: "Leaves make sugar." });
    /// assert_eq!(quoted[1], Winner { kind: TaskKind::Followup, text: "Out of what?" });
    /// ```
    #[must_use]
    pub fn winners(&self) -> Vec<Winner<'_>> {
        let mut winners = match self {
            Self::OpenValidators(openvalidators::Task::Followup { context, .. }) => of_context(context),
            Self::OpenValidators(openvalidators::Task::Answer { context, question }) => {
                let mut winners = of_context(context);
                winners.push(Winner { kind: TaskKind::Followup, text: question });
                winners
            }
            Self::TextPrompting(task) if task.kind != TaskKind::Augment => of_base_text(task),
            Self::OpenValidators(openvalidators::Task::Augment { .. }) | Self::TextPrompting(_) | Self::Unknown => {
                Vec::new()
            }
        };
        for winner in &mut winners {
            winner.text = python::strip(winner.text);
        }
        winners.retain(|winner| !winner.text.is_empty());
        winners
    }
}

fn of_context(context: &str) -> Vec<Winner<'_>> {
    let (summary, rounds) =
        context.split_once(PREVIOUS).map_or((context, None), |(summary, rest)| (summary, Some(rest)));
    let mut winners = vec![Winner { kind: TaskKind::Augment, text: summary }];
    for round in rounds.into_iter().flat_map(|rounds| rounds.split(NEXT)) {
        let (question, answer) = round.split_once(ANSWER).map_or((round, None), |(q, a)| (q, Some(a)));
        winners.push(Winner { kind: TaskKind::Followup, text: question });
        winners.extend(answer.map(|text| Winner { kind: TaskKind::Answer, text }));
    }
    winners
}

fn of_base_text(task: &text_prompting::Task) -> Vec<Winner<'_>> {
    let Some(text) = task.base_text.strip_prefix(SUMMARY) else { return Vec::new() };
    chained(text, task.kind).unwrap_or_else(|| {
        let heading = (0..10).filter_map(|k| {
            let heading = question_heading(k);
            Some((text.rfind(&heading)?, heading.len()))
        });
        let last = heading.max().filter(|_| task.kind == TaskKind::Answer);
        let (summary, question) = last.map_or((text, None), |(at, length)| (&text[..at], text.get(at + length..)));
        let summary = Winner { kind: TaskKind::Augment, text: summary };
        std::iter::once(summary).chain(question.map(|text| Winner { kind: TaskKind::Followup, text })).collect()
    })
}

fn question_heading(k: usize) -> String {
    format!("\n### QUESTION {k}:\n")
}

/// Reads what earlier 2.x versions quote: the summary and all that was asked and answered since, counted from 0. `None` where
/// no answer is quoted, or where the last heading is not the one that the task comes after.
fn chained(text: &str, task: TaskKind) -> Option<Vec<Winner<'_>>> {
    let mut winners = Vec::new();
    let (mut kind, mut rest) = (TaskKind::Augment, text);
    for step in 0.. {
        let (heading, next) = match (step / 2, step % 2) {
            (k, 0) => (question_heading(k), TaskKind::Followup),
            (k, _) => (format!("\n### ANSWER {k}:\n"), TaskKind::Answer),
        };
        let Some((before, after)) = rest.split_once(&heading) else { break };
        winners.push(Winner { kind, text: before });
        (kind, rest) = (next, after);
    }
    winners.push(Winner { kind, text: rest });
    let is_whole = match task {
        TaskKind::Augment => false,
        TaskKind::Followup => kind == TaskKind::Answer,
        TaskKind::Answer => kind == TaskKind::Followup && winners.len() > 2,
    };
    is_whole.then_some(winners)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    /// Steps of rounds, in the form that validators publish.
    fn recorded(file: &str) -> Vec<Value> {
        let path = format!("{}/../../tests/data/openvalidators/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_later_prompts_quote_won_before() {
        for file in ["history_v1.2.0.jsonl", "history_text_prompting_2.1.jsonl"] {
            let mut won: HashSet<(TaskKind, String)> = HashSet::new();
            let (mut n_prompts, mut n_winners) = (0, 0);
            for row in recorded(file) {
                let (Some(prompt), Some(best)) = (row["prompt"].as_str(), row["best"].as_str()) else { continue };
                let prompt = Prompt::parse(prompt);
                let kind = prompt.kind().unwrap_or_else(|| panic!("{row}"));
                let winners = prompt.winners();
                let expected = match (kind, row["name"].as_str().unwrap()) {
                    (TaskKind::Augment, _) => 0,
                    (TaskKind::Followup, name) if file.contains("v1.2") => {
                        1 + 2 * usize::from(name.as_bytes()[8] - b'0')
                    }
                    (TaskKind::Answer, name) if file.contains("v1.2") => 2 + 2 * usize::from(name.as_bytes()[6] - b'0'),
                    (TaskKind::Followup, _) => 1,
                    (TaskKind::Answer, _) => 2,
                };
                assert_eq!(winners.len(), expected, "{row}");
                for winner in winners {
                    let text = winner.text.to_owned();
                    assert!(won.contains(&(winner.kind, text)), "{file}: {winner:?} of {row}");
                    n_winners += 1;
                }
                won.insert((kind, python::strip(best).to_owned()));
                n_prompts += 1;
            }
            assert!(n_prompts >= 36 && n_winners > n_prompts, "{file}: {n_prompts} {n_winners}");
        }
    }

    #[test]
    fn what_quotes_nothing_has_no_winners() {
        assert_eq!(Prompt::parse("### SUMMARY CONTEXT:\nA summary?").winners(), []);
        let augment = openvalidators::Task::Augment { text: "A text.".to_owned(), sentences: 4 };
        assert_eq!(Prompt::parse(&augment.compose()).winners(), []);
        let empty = openvalidators::Task::Followup { context: " \n".to_owned(), first: true };
        assert_eq!(Prompt::parse(&empty.compose()).winners(), []);
        let bare =
            text_prompting::Task { kind: TaskKind::Followup, base_text: "No heading.".to_owned(), criteria: vec![] };
        assert_eq!(Prompt::parse(&bare.compose()).winners(), []);
    }

    #[test]
    fn chained_prompts_quote_all_that_was_asked_and_answered() {
        use TaskKind::{Answer, Augment, Followup};

        let read = |kind: TaskKind, base_text: &str| {
            let task = text_prompting::Task { kind, base_text: base_text.to_owned(), criteria: vec![] };
            let prompt = Prompt::parse(&task.compose());
            prompt.winners().iter().map(|winner| (winner.kind, winner.text.to_owned())).collect::<Vec<_>>()
        };
        let quoted = |parts: &[(TaskKind, &str)]| parts.iter().map(|(k, t)| (*k, (*t).to_owned())).collect::<Vec<_>>();
        let parts = [
            (Augment, "A summary.\nOf two lines."),
            (Followup, "Why?"),
            (Answer, "Because.\n\nThat is why."),
            (Followup, "When?"),
            (Answer, "Now."),
            (Followup, "Where?"),
        ];
        let mut text = format!("### SUMMARY CONTEXT:\n{}", parts[0].1);
        assert_eq!(read(Followup, &text), quoted(&parts[..1]));
        for (i, (kind, part)) in parts.iter().enumerate().skip(1) {
            let heading = if *kind == Followup { "QUESTION" } else { "ANSWER" };
            text += &format!("\n### {heading} {}:\n{part}", (i - 1) / 2);
            let asked = if *kind == Followup { Answer } else { Followup };
            assert_eq!(read(asked, &text), quoted(&parts[..=i]), "{text}");
        }
        // Of version 2.1 itself: the last question alone, with its number.
        let alone = "### SUMMARY CONTEXT:\nA summary.\n### QUESTION 2:\nWhere?";
        assert_eq!(read(Answer, alone), quoted(&[(Augment, "A summary."), (Followup, "Where?")]));
        let heading_inside = "### SUMMARY CONTEXT:\nIt says\n### ANSWER 0:\nNo.\n### QUESTION 0:\nWhere?";
        let summary = "It says\n### ANSWER 0:\nNo.";
        assert_eq!(read(Answer, heading_inside), quoted(&[(Augment, summary), (Followup, "Where?")]));
        assert_eq!(read(Followup, &format!("### SUMMARY CONTEXT:\n{summary}")), quoted(&[(Augment, summary)]));
    }
}
