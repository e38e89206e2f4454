//! Texts that were written for this project, and the prompts that validators would make of them.

use idiolect_uniqueness::lexical::fnv1a;
use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, Unit, text_prompting};
use idiolect_validator::{StepTask, TaskError};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::{Deserialize, Serialize};

use crate::lines;
use crate::statistics::below;

const BUILT_IN: &str = include_str!("../data/texts.jsonl");

/// What questions are to begin with, some of them at a time.
const QUESTION_WORDS: [&str; 6] = ["who", "what", "when", "where", "why", "how"];

/// Sentences of a text that stand for the summary that validators quote.
const SUMMARY_SENTENCES: usize = 5;

/// What is asked of a text where a prompt needs a question; `{}` is its title.
const QUESTIONS: [&str; 6] = [
    "What is the main thing to understand about {}?",
    "Why does the passage call attention to {}?",
    "How do the facts given here about {} fit together?",
    "What would a newcomer find most surprising about {}?",
    "Which single fact matters most for {}, and why?",
    "What follows from the facts given here about {}?",
];

/// A text of some 15 to 30 sentences.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Text {
    /// Its name in ids.
    pub id: String,
    /// What it is about.
    pub title: String,
    /// The text, in one paragraph.
    pub text: String,
}

/// A prompt of an experiment: a line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaPrompt {
    /// Its id.
    #[serde(rename = "p")]
    pub id: String,
    /// What miners are asked.
    pub prompt: String,
    /// What it asks for, `augment`, `followup` or `answer`; may be missing where the prompt fits a template of the validators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The text that rewards are computed against. It is read out of the prompt; files have it for their readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_text: Option<String>,
}

/// Why there are no prompts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptsError {
    /// The file cannot be read, or a line of it is no prompt.
    #[error(transparent)]
    Lines(#[from] lines::LinesError),
    /// An id stands in two lines.
    #[error("the prompt {id} is there twice")]
    Twice {
        /// Which.
        id: String,
    },
    /// A task that nobody knows.
    #[error("the prompt {id} has the task {task:?}, expected augment, followup or answer")]
    Task {
        /// Which prompt.
        id: String,
        /// Its task.
        task: String,
    },
    /// What it asks for is unknown, or contradicts its task.
    #[error("the prompt {id}: {problem}")]
    Read {
        /// Which prompt.
        id: String,
        /// What is wrong.
        problem: TaskError,
    },
    /// There is none.
    #[error("there are no prompts")]
    Nothing,
}

/// Returns the built-in texts.
///
/// # Panics
/// Never: the file is part of the crate and tested.
#[must_use]
pub fn built_in() -> Vec<Text> {
    let lines = BUILT_IN.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).expect("the built-in file is valid")).collect()
}

/// Composes `n` prompts over texts as validators of version 2.1 do, drawn by the seed: of each text one, in an order of the seed's;
/// then another round over the texts, with other tasks, and so on. Summaries are asked for of the whole text; questions and answers of some
/// of its sentences, which stand for the best summary that validators quote.
///
/// The criteria: of summaries and answers 50 to 200 words or 4 to 8 sentences, and bullets, numbers or neither; of answers no question mark,
/// too; of questions 10 to 40 words or 40 to 150 characters, one of two to six words to begin with, and a question mark at the end.
///
/// ```
/// use idiolect_arena::texts::{built_in, compose};
///
/// let prompts = compose(&built_in(), 3, 7);
/// let tasks: Vec<&str> = prompts.iter().filter_map(|prompt| prompt.task.as_deref()).collect();
/// assert_eq!(tasks, ["augment", "followup", "answer"]);
/// assert!(prompts[0].prompt.contains("Your task is to summarize the text"));
/// ```
#[must_use]
pub fn compose(texts: &[Text], n: usize, seed: u64) -> Vec<ArenaPrompt> {
    if texts.is_empty() {
        return Vec::new();
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..texts.len()).collect();
    for i in (1..order.len()).rev() {
        let other = below(&mut random, i + 1);
        order.swap(i, other);
    }
    let mut seen = std::collections::HashSet::new();
    let mut prompts = Vec::with_capacity(n);
    while prompts.len() < n {
        let nth = prompts.len();
        let text = &texts[order[nth % texts.len()]];
        // Each text gets all tasks in turn, whatever the number of texts.
        let kind = TaskKind::ALL[(nth % texts.len() + nth / texts.len()) % TaskKind::ALL.len()];
        let base_text = base_text(text, kind, &mut random);
        let task = text_prompting::Task { kind, base_text, criteria: criteria(kind, &mut random) };
        let prompt = task.compose();
        // The hash keeps replies to other criteria apart. Equal prompts, which chance makes, are numbered.
        let mut id = format!("{}-{kind}-{:08x}", text.id, fnv1a(prompt.bytes()) >> 32);
        if !seen.insert(id.clone()) {
            id = format!("{id}-{nth}");
        }
        prompts.push(ArenaPrompt { id, prompt, task: Some(kind.to_string()), base_text: Some(task.base_text) });
    }
    prompts
}

/// Reads a file of prompts, `{"p": ID, "prompt": TEXT, "task": TASK}` a line, of which `task` may be missing where the prompt fits a template of
/// the validators.
///
/// # Errors
/// Any [`PromptsError`].
pub fn open(path: &std::path::Path) -> Result<Vec<(ArenaPrompt, StepTask)>, PromptsError> {
    read(lines::read(path)?)
}

/// Reads what each prompt asks for.
///
/// # Errors
/// Any [`PromptsError`].
pub fn read(prompts: Vec<ArenaPrompt>) -> Result<Vec<(ArenaPrompt, StepTask)>, PromptsError> {
    let mut seen = std::collections::HashSet::new();
    let mut tasks = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        if !seen.insert(prompt.id.clone()) {
            return Err(PromptsError::Twice { id: prompt.id });
        }
        let told = match &prompt.task {
            Some(task) => match TaskKind::of_step(task) {
                Some(kind) => Some(kind),
                None => return Err(PromptsError::Task { id: prompt.id, task: task.clone() }),
            },
            None => None,
        };
        match StepTask::read(&prompt.prompt, told) {
            Ok(task) => tasks.push((prompt, task)),
            Err(problem) => return Err(PromptsError::Read { id: prompt.id, problem }),
        }
    }
    if tasks.is_empty() { Err(PromptsError::Nothing) } else { Ok(tasks) }
}

fn base_text(text: &Text, kind: TaskKind, random: &mut ChaCha8Rng) -> String {
    if kind == TaskKind::Augment {
        return text.text.clone();
    }
    let all = sentences(&text.text);
    let n = SUMMARY_SENTENCES.min(all.len());
    let first = below(random, 3.min(all.len() - n + 1));
    // Spread over the text, from the first on.
    let chosen = (0..n).map(|i| all[first + i * (all.len() - first) / n]);
    let summary = format!("### SUMMARY CONTEXT:\n{}", chosen.collect::<Vec<_>>().join(" "));
    if kind == TaskKind::Followup {
        return summary;
    }
    let question = QUESTIONS[below(random, QUESTIONS.len())].replace("{}", &text.title);
    format!("{summary}\n### QUESTION 0:\n{question}")
}

/// Draws what validators of version 2.1 ask for beside the task.
pub(crate) fn criteria(kind: TaskKind, random: &mut ChaCha8Rng) -> Vec<Criterion> {
    let length = match (kind, below(random, 2)) {
        (TaskKind::Followup, 0) => Criterion::Length { target: between(random, 10, 40), unit: Unit::Words },
        (TaskKind::Followup, _) => Criterion::Length { target: between(random, 40, 150), unit: Unit::Characters },
        (_, 0) => Criterion::Length { target: between(random, 50, 200), unit: Unit::Words },
        (_, _) => Criterion::Length { target: between(random, 4, 8), unit: Unit::Sentences },
    };
    if kind == TaskKind::Followup {
        let mut words: Vec<String> = QUESTION_WORDS.map(str::to_owned).to_vec();
        let n_words = 2 + below(random, 5);
        while words.len() > n_words {
            let other = below(random, words.len());
            words.remove(other);
        }
        let starts = Criterion::Words { place: ContentMatch::StartsWith, negated: false, words };
        return vec![starts, length, Criterion::EndsWithQuestionMark];
    }
    let layout = match below(random, 3) {
        0 => Criterion::Bullets,
        1 => Criterion::Numbers,
        _ => Criterion::NoLists,
    };
    let mut criteria = vec![length, layout];
    if kind == TaskKind::Answer {
        criteria.push(Criterion::NoQuestionMarks);
    }
    criteria
}

/// Returns a number between two, both among them.
fn between(random: &mut ChaCha8Rng, least: u32, most: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most the difference of two such numbers")]
    let above = below(random, (most - least + 1) as usize) as u32;
    least + above
}

/// Divides a text into sentences: after `.`, `!` or `?` and white space, before what is no small letter.
fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    for (at, _) in text.match_indices(['.', '!', '?']) {
        let rest = &text[at + 1..];
        let next = rest.trim_start();
        if next.len() < rest.len() && next.chars().next().is_some_and(|c| !c.is_lowercase()) {
            found.push(text[begin..=at].trim());
            begin = at + 1;
        }
    }
    if !text[begin..].trim().is_empty() {
        found.push(text[begin..].trim());
    }
    found
}

#[cfg(test)]
mod tests {
    use idiolect_validator::task::Prompt;

    use super::*;

    #[test]
    fn texts_are_of_15_to_30_sentences_and_of_different_names() {
        let texts = built_in();
        assert!(texts.len() >= 60, "{}", texts.len());
        let mut ids: Vec<&str> = texts.iter().map(|text| text.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), texts.len());
        for text in &texts {
            let n = sentences(&text.text).len();
            assert!((15..=30).contains(&n), "{} has {n} sentences", text.id);
        }
    }

    #[test]
    fn prompts_are_the_validators_own_and_the_seeds() {
        let texts = &built_in()[..4];
        let prompts = compose(texts, 14, 5);
        assert_eq!(prompts, compose(texts, 14, 5));
        assert_ne!(prompts, compose(texts, 14, 6));
        assert_eq!(prompts[..9], compose(texts, 9, 5));
        let read = read(prompts).unwrap();
        for (prompt, task) in &read {
            let Prompt::TextPrompting(parsed) = Prompt::parse(&prompt.prompt) else { panic!("{}", prompt.prompt) };
            assert_eq!((prompt.base_text.as_ref(), parsed.kind), (Some(&parsed.base_text), task.kind));
            assert!(task.criteria.len() >= 2 && !task.criteria.iter().any(|c| matches!(c, Criterion::Other(_))));
        }
        // Three rounds give every text every task.
        let of = |kind| read[..12].iter().filter(|(_, task)| task.kind == kind).count();
        assert_eq!(TaskKind::ALL.map(of), [4, 4, 4]);
        assert!(compose(&[], 3, 0).is_empty());
    }

    #[test]
    fn quoted_sentences_are_those_of_the_text() {
        let texts = built_in();
        let answer = compose(&texts, 3, 1).remove(2);
        let base = answer.base_text.unwrap();
        let (summary, question) = base.split_once("\n### QUESTION 0:\n").unwrap();
        let summary = summary.strip_prefix("### SUMMARY CONTEXT:\n").unwrap();
        let text = texts.iter().find(|text| answer.id.starts_with(&format!("{}-answer", text.id))).unwrap();
        let quoted = sentences(summary);
        assert_eq!(quoted.len(), SUMMARY_SENTENCES);
        assert!(quoted.iter().all(|sentence| text.text.contains(sentence)) && question.contains(&text.title));
        assert_eq!(
            sentences("One. 2.5 metres, e.g. here! \"Two?\" Yes"),
            ["One.", "2.5 metres, e.g. here!", "\"Two?\" Yes"]
        );
        assert_eq!(sentences(" "), Vec::<&str>::new());
    }

    #[test]
    fn what_is_wrong_with_a_prompt_is_said() {
        let prompt = |id: &str, text: &str, task: Option<&str>| ArenaPrompt {
            id: id.to_owned(),
            prompt: text.to_owned(),
            task: task.map(str::to_owned),
            base_text: None,
        };
        let say = |prompts: Vec<ArenaPrompt>| read(prompts).unwrap_err().to_string();
        assert!(say(vec![prompt("a", "Why?", None)]).starts_with("the prompt a: the prompt fits no template"));
        assert_eq!(
            say(vec![prompt("a", "Why?", Some("essay"))]),
            "the prompt a has the task \"essay\", expected augment, followup or answer"
        );
        let twice = prompt("a", "Why?", Some("answer"));
        assert_eq!(say(vec![twice.clone(), twice]), "the prompt a is there twice");
        assert_eq!(say(vec![]), "there are no prompts");
    }
}
