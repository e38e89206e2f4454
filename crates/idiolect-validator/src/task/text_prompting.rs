//! The prompts of opentensor/text-prompting 2.1 (`prompting/validators/tasks.py`).

use super::{Criterion, TaskKind};

const OPEN: &str = "\n'''";
const CLOSE: &str = "'''\n\nThe following criteria must be respected:\n";
/// As some recorded runs have it.
const CLOSE_SHORT: &str = "'''\nThe following criteria must be respected:\n";
/// What the original has after the list of criteria.
const PADDING: &str = "                                      ";

struct Template {
    kind: TaskKind,
    head: &'static str,
    padded: bool,
    tail: &'static str,
}

const TEMPLATES: [Template; 3] = [
    Template {
        kind: TaskKind::Augment,
        head: "Your task is to summarize the text delimited with triple backticks:",
        padded: false,
        tail: "\n- Do not try to create questions or answers for your summarization. \n",
    },
    Template {
        kind: TaskKind::Followup,
        head: "Your task is to ask a single relevant and insightful question about the preceding context delimited with triple backticks:",
        padded: true,
        tail: "\n- Do not answer the question you generate. \n- Do not try to summarize the text\n",
    },
    Template {
        kind: TaskKind::Answer,
        head: "Read the preceding context delimited with triple backticks carefully.\nYour task is to provide a clear and direct answer to the last question found in the text.        \nMaintain an objective tone by sticking to factual information and logical deductions without personal opinions or emotional language:",
        padded: true,
        tail: "\n- Do not include questions or summaries in your answer.\n",
    },
];

/// One task of version 2.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is asked for.
    pub kind: TaskKind,
    /// The text that rewards and masks are computed against (they never see the whole prompt).
    pub base_text: String,
    /// What the reply should look like.
    pub criteria: Vec<Criterion>,
}

impl Task {
    /// Returns the prompt as a validator sends it.
    #[must_use]
    pub fn compose(&self) -> String {
        let template = match self.kind {
            TaskKind::Augment => &TEMPLATES[0],
            TaskKind::Followup => &TEMPLATES[1],
            TaskKind::Answer => &TEMPLATES[2],
        };
        let lines: Vec<String> = self.criteria.iter().map(|c| format!("- {}", c.compose())).collect();
        let padding = if template.padded { PADDING } else { "" };
        format!("{}{OPEN}{}{CLOSE}{}{padding}{}", template.head, self.base_text, lines.join("\n"), template.tail)
    }

    /// Reads a prompt back; `None` for any other text. The last closing quotes before the criteria end the base text.
    #[must_use]
    pub fn parse(prompt: &str) -> Option<Self> {
        TEMPLATES.iter().find_map(|template| {
            let rest = prompt.strip_prefix(template.head)?.strip_prefix(OPEN)?;
            let rest = rest.strip_suffix(template.tail)?;
            let rest = if template.padded { rest.strip_suffix(PADDING).unwrap_or(rest) } else { rest };
            let (base_text, list) = rest.rsplit_once(CLOSE).or_else(|| rest.rsplit_once(CLOSE_SHORT))?;
            let criteria = match list {
                "" => Vec::new(),
                list => {
                    let line = |line: &str| line.strip_prefix("- ").map(Criterion::parse);
                    list.split('\n').map(line).collect::<Option<_>>()?
                }
            };
            Some(Self { kind: template.kind, base_text: base_text.to_owned(), criteria })
        })
    }
}

/// Cuts a follow-up question as the validator does before it scores it (`forward.py`): the sentence up to the first
/// question mark, or the last sentence, of these the last `n_words` words (validators: 40), and a question mark. An empty
/// reply stays empty.
#[must_use]
pub fn cut_followup(completion: &str, n_words: usize) -> String {
    let trimmed = completion.trim_matches('.');
    if trimmed.is_empty() {
        return completion.to_owned();
    }
    let sentence = trimmed.split('?').next().unwrap_or(trimmed);
    let sentence = sentence.rsplit('.').next().unwrap_or(sentence);
    let words: Vec<&str> = sentence.split(' ').collect();
    format!("{}?", words[words.len().saturating_sub(n_words)..].join(" "))
}
