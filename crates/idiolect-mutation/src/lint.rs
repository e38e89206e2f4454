//! What may be wrong with a library that can be read, and phrases that many replies share because of an operator.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};

use crate::guard;
use crate::operator::added_tokens;
use crate::slot::is_usual;
use crate::template::{PARAPHRASE, PROMPT};
use crate::{Library, Mode, Operator, Place, Task};

/// Words of a run that is looked for.
pub const RUN: usize = 5;
/// Share of replies that may share a run of words.
pub const MOST_SHARED: f64 = 0.02;
/// Seeds with which texts are rendered.
const SEEDS: u64 = 32;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A slot that is none of the usual ones.
    Slot,
    /// An operator that is never drawn.
    NeverDrawn,
    /// A name or pattern that stands for nothing.
    Unmatched,
    /// A route that no request reaches.
    Unreachable,
    /// A text that may lead the reply to what validators punish.
    Mark,
    /// A text that quotes words, which replies would repeat.
    Quotation,
    /// Operators' texts that have a run of words in common.
    SharedText,
    /// Replies that have a run of words in common.
    SharedReplies,
    /// Replies with texts that their operator forbids.
    Forbidden,
}

/// One thing that may be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// The operator; `None` where it is about none, or about a route.
    pub operator: Option<String>,
    /// What was found.
    pub message: String,
}

/// A reply and how it came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Names of the operators; none for the prompt as it came.
    pub operators: Vec<String>,
    /// The prompt, as far as it is known: runs of words that it has are not counted.
    pub prompt: String,
    /// The reply.
    pub text: String,
}

/// What replies share that one operator, or none, brought about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sharing {
    /// The operator; `None` for the replies to prompts as they came.
    pub operator: Option<String>,
    /// How many replies there are.
    pub n_replies: usize,
    /// The run of words that most of them share; empty where no two do.
    pub run: String,
    /// How many do.
    pub n_sharing: usize,
    /// Their share, in [0, 1].
    pub share: f64,
    /// Share of all other replies that have it, too; 0 where there are none.
    pub elsewhere: f64,
}

/// Looks a library over.
#[must_use]
pub fn library(library: &Library) -> Vec<Finding> {
    let mut findings = Vec::new();
    for operator in library.operators() {
        let mut note = |kind, message| findings.push(Finding { kind, operator: Some(operator.name.clone()), message });
        if !is_usual(&operator.slot) {
            note(FindingKind::Slot, format!("slot {:?} is none of the usual ones", operator.slot));
        }
        if let Some(why) = never_drawn(library, operator) {
            note(FindingKind::NeverDrawn, format!("never drawn: {why}"));
        }
        for pattern in &operator.excludes {
            if !library.operators().iter().any(|other| pattern.matches(&other.name)) {
                note(FindingKind::Unmatched, format!("excludes holds {:?}, which no operator is", pattern.as_str()));
            }
        }
        of_texts(operator, &mut note);
    }
    shared_texts(library, &mut findings);
    routes(library, &mut findings);
    findings
}

fn never_drawn(library: &Library, operator: &Operator) -> Option<String> {
    if operator.weight == 0.0 {
        return Some("its weight is 0".to_owned());
    }
    let tasks: Vec<Task> = Task::ALL.into_iter().filter(|task| operator.is_for(*task)).collect();
    let usable = |task: Task| library.usable(task, &Mode::mutate());
    let is_usable = |task: &Task| usable(*task).iter().any(|other| other.name == operator.name);
    let tasks: Vec<Task> = tasks.into_iter().filter(is_usable).collect();
    if tasks.is_empty() {
        let key = if operator.is_paraphrase() && !library.allow_paraphrase() {
            "paraphrases need allow_paraphrase"
        } else {
            "rewrites of validators' tasks need allow_rewrite"
        };
        return Some(format!("{key} = true"));
    }
    let missing = operator.requires.iter().find(|pattern| {
        !tasks.iter().any(|task| usable(*task).iter().any(|o| pattern.matches(&o.name) && o.goes_with(operator)))
    });
    if let Some(pattern) = missing {
        return Some(format!("none of {:?}, which it requires, is for its tasks", pattern.as_str()));
    }
    let fewest = texts(operator).into_iter().map(|(_, text)| added_tokens(operator.place, &text)).min()?;
    let max = library.max_added_tokens();
    (fewest > max).then(|| format!("its text has about {fewest} tokens, max_added_tokens is {max}"))
}

/// Returns what an operator's text may become, with its tasks; each text once a task.
fn texts(operator: &Operator) -> BTreeSet<(Task, String)> {
    let tasks = Task::ALL.into_iter().filter(|task| operator.is_for(*task));
    tasks.flat_map(|task| (0..SEEDS).filter_map(move |seed| Some((task, operator.render(task, seed).ok()?)))).collect()
}

/// Words that ask for a layout which validators' criteria may forbid.
const LAYOUTS: [&str; 8] = ["bullet", "bullets", "list", "lists", "numbered", "table", "heading", "headings"];
/// Words after which a layout is declined, not asked for.
const DECLINING: [&str; 5] = ["no", "not", "never", "without", "avoid"];

fn of_texts(operator: &Operator, note: &mut impl FnMut(FindingKind, String)) {
    let mut seen = BTreeSet::new();
    for (task, text) in texts(operator).into_iter().filter(|(_, text)| !text.is_empty()) {
        let own = text.replace(PROMPT, " ").replace(PARAPHRASE, " ");
        for flag in guard::check(task, "", &own) {
            if seen.insert(flag.rule.clone()) {
                note(FindingKind::Mark, format!("the text has {:?}, which costs a reply in {task}", flag.rule));
            }
        }
        if task == Task::Unknown {
            continue;
        }
        if own.contains('?') && task != Task::Followup && seen.insert("?".to_owned()) {
            note(FindingKind::Mark, format!("the text asks a question, which a reply in {task} may echo"));
        }
        let words: Vec<String> = words(&own);
        let asks = words.iter().position(|word| LAYOUTS.contains(&word.as_str()));
        let declines = |at: usize| words[at.saturating_sub(4)..at].iter().any(|w| DECLINING.contains(&w.as_str()));
        if let Some(at) = asks.filter(|at| !declines(*at))
            && seen.insert(words[at].clone())
        {
            note(FindingKind::Mark, format!("the text speaks of a {}, which criteria of {task} may forbid", words[at]));
        }
    }
    let quoted = texts(operator).into_iter().find_map(|(_, text)| quotation(&text));
    if let Some(quoted) = quoted {
        note(FindingKind::Quotation, format!("the text quotes {quoted:?}, which replies may repeat"));
    }
}

/// Returns the first quotation of two words or more.
fn quotation(text: &str) -> Option<String> {
    [('"', '"'), ('“', '”'), ('‘', '’'), ('«', '»')].into_iter().find_map(|(open, close)| {
        let inner = text.split_once(open)?.1.split_once(close)?.0;
        (inner.split_whitespace().count() >= 2 && !inner.contains("{{")).then(|| inner.to_owned())
    })
}

fn shared_texts(library: &Library, findings: &mut Vec<Finding>) {
    let mut by_run: BTreeMap<Vec<String>, BTreeSet<&str>> = BTreeMap::new();
    for operator in library.operators() {
        for (_, text) in texts(operator) {
            for run in words(&text).windows(RUN) {
                by_run.entry(run.to_vec()).or_default().insert(&operator.name);
            }
        }
    }
    // Runs overlap: one finding for each set of operators.
    let mut told = BTreeSet::new();
    for (run, names) in by_run.into_iter().filter(|(_, names)| names.len() > 1) {
        if told.insert(names.clone()) {
            let all: Vec<&str> = names.into_iter().collect();
            let message = format!("{} have {:?} in their texts", all.join(", "), run.join(" "));
            findings.push(Finding { kind: FindingKind::SharedText, operator: Some(all[0].to_owned()), message });
        }
    }
}

fn routes(library: &Library, findings: &mut Vec<Finding>) {
    let mut note = |kind, message| findings.push(Finding { kind, operator: None, message });
    for (i, route) in library.routes().iter().enumerate() {
        let nth = i + 1;
        if let Mode::Mutate { slots } = &route.mode {
            for slot in slots {
                if !library.operators().iter().any(|operator| operator.slot == *slot) {
                    note(FindingKind::Unmatched, format!("route {nth} names the slot {slot:?}, which no operator has"));
                }
            }
        }
        let before = library.routes()[..i].iter().position(|other| {
            let same = crate::Route { mode: route.mode.clone(), ..other.clone() } == *route;
            other.is_for_all() || same
        });
        if let Some(before) = before {
            note(
                FindingKind::Unreachable,
                format!("route {nth} is never reached: route {} matches before it", before + 1),
            );
        }
    }
    let rewrites = library.operators().iter().filter(|o| o.place == Place::Rewrite).count();
    if library.allow_rewrite() && rewrites == 0 {
        note(FindingKind::Unmatched, "allow_rewrite is true, and no operator is a rewrite".to_owned());
    }
}

/// Returns the words of a text in lower case, without marks.
fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’').filter(|w| !w.is_empty());
    parts.map(str::to_lowercase).collect()
}

fn hash(run: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    run.hash(&mut hasher);
    hasher.finish()
}

/// Runs of words of a reply that its prompt does not have, each once, with the place of its first word.
fn runs(row: &Row) -> HashMap<u64, usize> {
    let asked: HashSet<u64> = words(&row.prompt).windows(RUN).map(hash).collect();
    let mut runs = HashMap::new();
    for (at, run) in words(&row.text).windows(RUN).enumerate() {
        let run = hash(run);
        if !asked.contains(&run) {
            runs.entry(run).or_insert(at);
        }
    }
    runs
}

/// Measures what replies share, for each operator and for the replies without any, by name; the replies without any first.
///
/// A run counts once a reply. Where an operator's replies answer several prompts, a run counts that occurs in answers to more
/// than one: what only one prompt brings about is its subject's.
#[must_use]
pub fn sharing(rows: &[Row]) -> Vec<Sharing> {
    let all_runs: Vec<HashMap<u64, usize>> = rows.iter().map(runs).collect();
    let mut everywhere: HashMap<u64, usize> = HashMap::new();
    for run in all_runs.iter().flat_map(HashMap::keys) {
        *everywhere.entry(*run).or_default() += 1;
    }
    let mut groups: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        if row.operators.is_empty() {
            groups.entry(None).or_default().push(i);
        }
        let names: BTreeSet<&str> = row.operators.iter().map(String::as_str).collect();
        for name in names {
            groups.entry(Some(name)).or_default().push(i);
        }
    }
    let of_group = |(operator, members): (Option<&str>, Vec<usize>)| {
        let prompts: HashSet<&str> = members.iter().map(|&i| rows[i].prompt.as_str()).collect();
        // How many have it, the first that does, and whether its prompt is not the only one.
        let mut counts: HashMap<u64, (usize, usize, bool)> = HashMap::new();
        for &i in &members {
            for run in all_runs[i].keys() {
                let (n, first, several) = counts.entry(*run).or_insert((0, i, prompts.len() <= 1));
                *n += 1;
                *several |= rows[*first].prompt != rows[i].prompt;
            }
        }
        let shared = counts.iter().filter(|(_, (n, _, several))| *n > 1 && *several);
        // Of equals the one that comes first in the file.
        let most = shared.max_by_key(|(run, (n, first, _))| (*n, std::cmp::Reverse((*first, all_runs[*first][*run]))));
        let n_replies = members.len();
        let Some((run, (n_sharing, first, _))) = most else {
            let run = String::new();
            let operator = operator.map(str::to_owned);
            return Sharing { operator, n_replies, run, n_sharing: 0, share: 0.0, elsewhere: 0.0 };
        };
        let at = all_runs[*first][run];
        let n_elsewhere = rows.len() - n_replies;
        Sharing {
            operator: operator.map(str::to_owned),
            n_replies,
            run: words(&rows[*first].text)[at..at + RUN].join(" "),
            n_sharing: *n_sharing,
            share: *n_sharing as f64 / n_replies as f64,
            elsewhere: (everywhere[run] - n_sharing) as f64 / n_elsewhere.max(1) as f64,
        }
    };
    groups.into_iter().map(of_group).collect()
}

/// Finds what replies show to be wrong with operators: runs of words that more than [`MOST_SHARED`] of an operator's
/// replies share, and texts that they forbid.
#[must_use]
pub fn replies(library: &Library, rows: &[Row]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sharing in sharing(rows) {
        let Some(operator) = sharing.operator.filter(|_| sharing.share > MOST_SHARED) else { continue };
        let message = format!(
            "{} of {} replies ({:.1} %) have {:?}; of the others {:.1} %",
            sharing.n_sharing,
            sharing.n_replies,
            100.0 * sharing.share,
            sharing.run,
            100.0 * sharing.elsewhere
        );
        findings.push(Finding { kind: FindingKind::SharedReplies, operator: Some(operator), message });
    }
    for operator in library.operators() {
        let mut n: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.operators.contains(&operator.name)) {
            if let Some(text) = operator.induced(&row.text) {
                *n.entry(text).or_default() += 1;
            }
        }
        for (text, n) in n {
            let message = format!("{n} replies have {text:?}, which it forbids");
            findings.push(Finding { kind: FindingKind::Forbidden, operator: Some(operator.name.clone()), message });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(FindingKind, String)> {
        let findings = library(&Library::parse(text, "o.toml").unwrap());
        findings.into_iter().map(|f| (f.kind, f.operator.unwrap_or_default())).collect()
    }

    fn operator(name: &str, slot: &str, text: &str, rest: &str) -> String {
        format!("[[operator]]\nname = \"{name}\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = '''{text}'''\n{rest}\n")
    }

    #[test]
    fn the_built_in_library_is_clean() {
        assert_eq!(library(&Library::built_in()), []);
        assert_eq!(library(&Library::default()), []);
    }

    #[test]
    fn each_kind_is_found() {
        use FindingKind::{Mark, NeverDrawn, Quotation, SharedText, Slot, Unmatched, Unreachable};
        let rewrite = "[[operator]]\nname = \"r\"\nslot = \"paraphrase\"\nplace = \"rewrite\"\ntext = \"Of {{ prompt }} speak.\"\ntasks = [\"answer\"]\n";
        for (text, expected) in [
            (operator("a", "angel", "Be brief.", ""), vec![(Slot, "a")]),
            (operator("a", "angle", "Be brief.", "weight = 0"), vec![(NeverDrawn, "a")]),
            (rewrite.to_owned(), vec![(NeverDrawn, "r")]),
            (
                format!("max_added_tokens = 3\n{}", operator("a", "angle", "One two three four.", "")),
                vec![(NeverDrawn, "a")],
            ),
            (
                operator("a", "angle", "Be brief.", "requires = [\"b\"]\ntasks = [\"answer\"]")
                    + &operator("b", "lexis", "Be clear.", "tasks = [\"augment\"]"),
                vec![(NeverDrawn, "a")],
            ),
            (operator("a", "angle", "Be brief.", "excludes = [\"b.*\"]"), vec![(Unmatched, "a")]),
            (operator("a", "angle", "Why not be brief?", "tasks = [\"answer\"]"), vec![(Mark, "a")]),
            (operator("a", "angle", "Make a list.", "tasks = [\"answer\"]"), vec![(Mark, "a")]),
            (operator("a", "angle", "Write no list.", "tasks = [\"answer\"]"), vec![]),
            (operator("a", "angle", "Put Question: first.", "tasks = [\"answer\"]"), vec![(Mark, "a")]),
            (operator("a", "angle", "Start with “To be frank”.", ""), vec![(Quotation, "a")]),
            (
                operator("a", "angle", "Look at all of the small things.", "")
                    + &operator("b", "lexis", "Talk at all of the small fairs.", ""),
                vec![(SharedText, "a")],
            ),
            ("[[route]]\nslots = [\"angle\"]\n".to_owned(), vec![(Unmatched, "")]),
            ("[[route]]\nmode = \"passthrough\"\n[[route]]\ntask = [\"answer\"]\n".to_owned(), vec![(Unreachable, "")]),
            (
                "[[route]]\ntask = [\"answer\"]\nmode = \"passthrough\"\n[[route]]\ntask = [\"answer\"]\n".to_owned(),
                vec![(Unreachable, "")],
            ),
            ("allow_rewrite = true".to_owned(), vec![(Unmatched, "")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(kind, name)| (kind, name.to_owned())).collect();
            assert_eq!(found(&text), expected, "{text}");
        }
    }

    fn row(operators: &[&str], prompt: &str, text: &str) -> Row {
        Row { operators: operators.iter().map(|&o| o.to_owned()).collect(), prompt: prompt.into(), text: text.into() }
    }

    #[test]
    fn planted_phrases_are_found_in_replies() {
        let mut rows = Vec::new();
        for i in 0..100 {
            let filler = format!("x{i} y{i} z{i} u{i} v{i} w{i}");
            let planted = if i < 3 { "In the grand tapestry of things" } else { "" };
            rows.push(row(&["a"], &format!("p{i}"), &format!("{planted} {filler}")));
            rows.push(row(&[], &format!("p{i}"), &filler.replace('x', "q")));
        }
        let sharing = sharing(&rows);
        assert_eq!(sharing[0].operator, None);
        let a = &sharing[1];
        assert_eq!((a.n_replies, a.n_sharing, a.run.as_str()), (100, 3, "in the grand tapestry of"));
        assert_eq!((a.share, a.elsewhere), (0.03, 0.0));
        let findings = replies(&Library::default(), &rows);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].kind, findings[0].operator.as_deref()), (FindingKind::SharedReplies, Some("a")));
        // Two in a hundred are allowed.
        rows.remove(0);
        rows.push(row(&["a"], "p", "nothing like the others here at all"));
        assert_eq!(replies(&Library::default(), &rows), []);
    }

    #[test]
    fn runs_of_the_prompt_and_of_one_subject_do_not_count() {
        let quoted = "the quick brown fox jumps over";
        let rows = [row(&["a"], quoted, quoted), row(&["a"], quoted, quoted)];
        assert_eq!(sharing(&rows)[0].n_sharing, 0, "it comes from the prompt");
        let subject = "water boils at one hundred degrees";
        let rows = [row(&["a"], "p", subject), row(&["a"], "p", subject), row(&["a"], "q", "something else")];
        assert_eq!(sharing(&rows)[0].n_sharing, 0, "only one prompt has it");
        assert_eq!(sharing(&rows[..2])[0].n_sharing, 2, "there is only one prompt");
        assert!(sharing(&[]).is_empty());
    }

    #[test]
    fn forbidden_texts_are_found_in_replies() {
        let library = Library::parse(&operator("a", "angle", "Be brief.", "forbid = [\"Answer:\"]"), "o.toml").unwrap();
        let findings = replies(&library, &[row(&["a"], "", "answer: one"), row(&[], "", "answer: two")]);
        assert_eq!((findings.len(), findings[0].kind), (1, FindingKind::Forbidden));
    }
}
