//! The operators and routes of a TOML file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use idiolect_backend::Message;

use crate::check::{check_operator, check_relations};
use crate::collision::{Amount, CollisionModel, Features};
use crate::operator::Operator;
use crate::reader::Reader;
use crate::route::{Facts, Mode, Route, route};
use crate::task::Task;

/// Something wrong at one place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 when it is about no line in particular.
    pub line: usize,
    /// What is wrong, with the value.
    pub message: String,
}

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds bad values: all of them are named.
    #[error("{}", list(name, problems))]
    Invalid {
        /// The file's name.
        name: String,
        /// Everything that is wrong with it, by line.
        problems: Vec<Problem>,
    },
}

fn list(name: &str, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("{name}:{}: {}", p.line, p.message)).collect();
    lines.join("\n")
}

/// Operators, and the routes that say where they may be used.
///
/// A file has any number of `[[operator]]` and `[[route]]` tables, a table `[collision]` (see [`CollisionModel`]) and, above
/// them, `include_built_in` (default false), `exclude_built_in` (names of those to leave out), `max_operators` of one recipe
/// (default 2), `max_added_tokens` of one recipe (default 80), `allow_rewrite` and `allow_paraphrase` (default false). An empty file changes
/// nothing in any prompt. docs/mutation.md tells more, docs/operators.schema.json has all keys.
///
/// # Examples
/// ```
/// use idiolect_mutation::Library;
///
/// let library = Library::parse(
///     r#"
///     [[operator]]
///     name = "register.academic"
///     slot = "register"
///     place = "append"                 # or system, prepend, rewrite
///     text = "Answer using academic language."
///     weight = 2.0                     # default 1
///     tasks = ["answer", "unknown"]    # default: all
///     excludes = ["persona.*"]         # never in one recipe with these; requires = [...] draws others along
///     max_tokens = 20                  # default 80
///     forbid = ["Answer:"]             # must be neither in the text nor brought about
///     sampling = { temperature = [0.7, 0.9] }  # a value or a range; or stages of a chain, see `SamplingOverrides`
///
///     [[route]]
///     transport = ["epistula"]
///     mode = "passthrough"
///     "#,
///     "operators.toml",
/// )?;
/// assert_eq!(library.operators().len(), 1);
///
/// let error = Library::parse("[[operator]]\nname = 3\nplace = \"middle\"", "operators.toml").unwrap_err();
/// let text = error.to_string();
/// assert!(text.contains("operators.toml:2: name is an integer, expected a string"));
/// assert!(text.contains("operators.toml:3: place is \"middle\", expected system, prepend, append or rewrite"));
/// # Ok::<(), idiolect_mutation::LibraryError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Library {
    pub(crate) operators: Vec<Operator>,
    pub(crate) routes: Vec<Route>,
    pub(crate) max_operators: usize,
    pub(crate) max_added_tokens: u32,
    pub(crate) allow_rewrite: bool,
    pub(crate) allow_paraphrase: bool,
    pub(crate) collision: CollisionModel,
}

impl Default for Library {
    /// Returns the library that changes nothing.
    fn default() -> Self {
        Self {
            operators: Vec::new(),
            routes: Vec::new(),
            max_operators: 2,
            max_added_tokens: 80,
            allow_rewrite: false,
            allow_paraphrase: false,
            collision: CollisionModel::default(),
        }
    }
}

/// What is done about one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether it is mutated at all, and with which slots.
    pub mode: Mode,
    /// The chance that a plain answer falls under the gate; 0 in passthrough, where nobody asks.
    pub risk: f64,
    /// How much is varied.
    pub amount: Amount,
}

impl Plan {
    /// Returns how many candidates are made of at most `k`.
    #[must_use]
    pub fn candidates(&self, k: usize) -> usize {
        match self.amount {
            Amount::Nothing => k.min(1),
            _ => k,
        }
    }
}

impl Library {
    /// Makes a library of operators, without routes.
    ///
    /// # Errors
    /// [`LibraryError::Invalid`] for what a file with them would be refused for.
    pub fn new(operators: Vec<Operator>) -> Result<Self, LibraryError> {
        let mut problems = Vec::new();
        let mut library = Self::default();
        for operator in operators {
            let mut note = |_: &str, message| problems.push(Problem { line: 0, message });
            check_operator(&operator, &library.operators, &mut note);
            library.operators.push(operator);
        }
        let related = check_relations(&library.operators, library.max_operators);
        problems.extend(related.into_iter().map(|(_, _, message)| Problem { line: 0, message }));
        if problems.is_empty() {
            Ok(library)
        } else {
            Err(LibraryError::Invalid { name: "library".to_owned(), problems })
        }
    }

    /// Returns the operators that come with the crate.
    ///
    /// # Panics
    /// Never: a test loads them.
    #[must_use]
    pub fn built_in() -> Self {
        static BUILT_IN: LazyLock<Library> = LazyLock::new(|| {
            let parsed = Library::parse(include_str!("built_in.toml"), "built_in.toml");
            parsed.expect("the file is part of the crate and tested")
        });
        BUILT_IN.clone()
    }

    /// Reads a library out of a file.
    ///
    /// # Errors
    /// [`LibraryError`] when it cannot be read, or with all of its bad values.
    pub fn load(path: &Path) -> Result<Self, LibraryError> {
        let read = |source| LibraryError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a library out of a file's text; `name` stands in error messages.
    ///
    /// # Errors
    /// [`LibraryError::Invalid`] with all bad values.
    pub fn parse(text: &str, name: &str) -> Result<Self, LibraryError> {
        match Reader::read(text) {
            Ok(library) => Ok(library),
            Err(problems) => Err(LibraryError::Invalid { name: name.to_owned(), problems }),
        }
    }

    /// Returns the operators.
    #[must_use]
    pub fn operators(&self) -> &[Operator] {
        &self.operators
    }

    /// Returns the routes.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Returns the most operators that one recipe may have.
    #[must_use]
    pub const fn max_operators(&self) -> usize {
        self.max_operators
    }

    /// Returns the most tokens that one recipe may add to a prompt, by [`tokens::estimate`](crate::tokens::estimate).
    #[must_use]
    pub const fn max_added_tokens(&self) -> u32 {
        self.max_added_tokens
    }

    /// Says whether rewrites may be drawn for the validators' own tasks, whose criteria they would stand around.
    #[must_use]
    pub const fn allow_rewrite(&self) -> bool {
        self.allow_rewrite
    }

    /// Says whether operators may be drawn that need the caller's text in other words, which costs a backend's time. Who
    /// draws them has them completed by a [`Paraphraser`](crate::Paraphraser).
    #[must_use]
    pub const fn allow_paraphrase(&self) -> bool {
        self.allow_paraphrase
    }

    /// Returns the model of how likely others give the same answer.
    #[must_use]
    pub const fn collision(&self) -> &CollisionModel {
        &self.collision
    }

    /// Finds what becomes of a request; see [`route`].
    #[must_use]
    pub fn route(&self, facts: &Facts<'_>) -> Mode {
        route(&self.routes, facts)
    }

    /// Finds what becomes of a request, and how much of it is varied. `task` is the detected one.
    #[must_use]
    pub fn plan(&self, facts: &Facts<'_>, task: Task, messages: &[Message]) -> Plan {
        let mode = self.route(facts);
        if mode.is_passthrough() {
            return Plan { mode, risk: 0.0, amount: Amount::Nothing };
        }
        let risk = self.collision.risk(&Features::of(task, messages));
        let amount = self.collision.amount(risk);
        Plan { mode, risk, amount }
    }
}

/// Shows how many operators and routes there are.
impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operators, {} routes", self.operators.len(), self.routes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{Place, guard, tokens};

    #[test]
    fn the_built_in_operators_are_sound() {
        let library = Library::built_in();
        assert!(library.operators().len() >= 60, "{}", library.operators().len());
        let texts: Vec<&str> = library.operators().iter().map(|o| o.text.as_str()).collect();
        assert!(texts.contains(&"Answer using academic language."));
        for operator in library.operators() {
            assert!(!operator.tasks.is_empty() && operator.place != Place::Rewrite && operator.weight > 0.0);
            for task in Task::ALL.into_iter().filter(|task| operator.is_for(*task)) {
                for seed in 0..64 {
                    let text = operator.render(task, seed).unwrap();
                    assert!(tokens::estimate(&text) <= operator.max_tokens.min(48), "{text}");
                    // An operator must not talk the model into what the guard flags.
                    for other in Task::ALL.into_iter().filter(|_| !text.is_empty()) {
                        assert!(guard::check(other, "", &text).is_empty(), "{text}");
                    }
                    assert!(!text.contains(['?', ':', '\n', '{', '*', '#', '"', '“']), "{text}");
                    assert!(!text.contains("- ") && text.is_ascii(), "{text}");
                    assert!(text.is_empty() || text.ends_with('.'), "{text}");
                }
            }
        }
    }

    #[test]
    fn every_task_has_built_in_operators_of_several_slots() {
        let library = Library::built_in();
        for task in Task::ALL {
            let usable = library.usable(task, &Mode::mutate());
            let slots: BTreeSet<&str> = usable.iter().map(|o| o.slot.as_str()).collect();
            assert!(usable.len() >= 12 && slots.len() >= 5, "{task}: {} of {slots:?}", usable.len());
        }
        let slots: BTreeSet<&str> = library.operators().iter().map(|o| o.slot.as_str()).collect();
        // Another language is for those who ask for it, and models have the names that they are given.
        let missing: Vec<&str> =
            crate::slot::SLOTS.map(|(slot, _)| slot).into_iter().filter(|s| !slots.contains(s)).collect();
        assert_eq!(missing, ["lang", "model"]);
        // Texts that vary by themselves, beside the choice of operators.
        assert!(library.operators().iter().filter(|o| o.text.contains("{{")).count() >= 20);
    }

    #[test]
    fn everything_wrong_is_named_at_once_with_its_line() {
        let text = r#"max_operators = 99
surprise = 1

[[operator]]
name = "a b"
slot = 3
place = "middle"
text = "x"

[[operator]]
name = "ok"
slot = "s"
place = "append"
text = "{{ nobody }}"
weight = -1
tasks = ["answer", "sing"]

[[operator]]
name = "ok2"
slot = "s"
place = "append"
text = "x"
weight = -1.5
sampling = { temperature = 9, heat = 2 }

[[operator]]
slot = "s"

[[route]]
transport = ["pigeon"]
mode = "sometimes"
"#;
        let LibraryError::Invalid { name, problems } = Library::parse(text, "o.toml").unwrap_err() else {
            panic!("expected bad values")
        };
        assert_eq!(name, "o.toml");
        let found: Vec<(usize, &str)> =
            problems.iter().map(|p| (p.line, p.message.split(", expected").next().unwrap())).collect();
        assert_eq!(
            found,
            [
                (1, "max_operators is 99"),
                (2, "unknown key \"surprise\""),
                (5, "name is \"a b\""),
                (6, "slot is an integer"),
                (7, "place is \"middle\""),
                (14, "text: undefined value: `nobody` is undefined (in <string>:1)"),
                (15, "weight is -1"),
                (16, "tasks: unknown task \"sing\""),
                (23, "weight is -1.5"),
                (24, "unknown key \"heat\""),
                (24, "sampling: temperature is 9"),
                (26, "this operator has no name"),
                (26, "this operator has no place"),
                (26, "this operator has no text"),
                (30, "transport holds \"pigeon\""),
                (31, "mode is \"sometimes\""),
            ]
        );
    }

    #[test]
    fn relations_of_operators_are_checked() {
        let operator = |name: &str, rest: &str| {
            let slot = name.split('.').next().unwrap();
            format!("[[operator]]\nname = \"{name}\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = \"T\"\n{rest}\n")
        };
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = Library::parse(text, "o.toml").unwrap_err().to_string();
            assert_eq!(error, format!("o.toml:{expected}"));
        }
        let a = |rest: &str| operator("a.x", rest);
        check(&a("excludes = [\"a.x\"]"), "6: excludes holds \"a.x\", which \"a.x\" is itself, expected others");
        check(
            &a("excludes = [\"a b\"]"),
            "6: excludes holds \"a b\", expected an operator's name or a pattern like layout.*",
        );
        check(
            &a("requires = [\"b.*\"]"),
            "6: requires holds \"b.*\", which no other operator is, expected names or patterns of some",
        );
        check(
            &(a("requires = [\"a.y\"]") + &operator("a.y", "")),
            "6: requires holds \"a.y\", which is of its own slot or excluded, expected what goes with it",
        );
        check(
            &(a("requires = [\"b.x\"]")
                + &operator("b.x", "requires = [\"c.*\"]")
                + &operator("c.x", "requires = [\"a.x\"]")),
            "6: requires goes in a circle: a.x > b.x > c.x > a.x, expected an end",
        );
        check(
            &(a("requires = [\"b.x\", \"c.x\"]") + &operator("b.x", "") + &operator("c.x", "")),
            "6: requires holds 2 names, expected fewer than max_operators, 2",
        );
        check(&(a("") + &a("")), "8: name \"a.x\" is taken by an operator above, expected one of its own");
        check(&a("max_tokens = 0"), "6: max_tokens is 0, expected 1 to 1000");
        check(&a("forbid = [\"t\"]"), "5: text: the template gives \"t\", which the operator forbids");
        check(
            &a("sampling = { temperature = [0.9, 0.7] }"),
            "6: sampling: temperature is 0.9 to 0.7, expected the lower end first",
        );
        check(
            &a("sampling = { temperature = [0.9] }"),
            "6: temperature is a list of 1, expected a number or the two ends of a range",
        );
        check(
            "exclude_built_in = [\"seed.*\"]",
            "1: exclude_built_in is given, expected include_built_in = true beside it",
        );
        check("[[route]]\nwords = [9, 3]", "2: words is 3, expected 9 to 4294967295");
        check("[[route]]\nvalidator = [\"me\"]", "2: validator holds \"me\", expected hotkeys like 5C4h…");
        check(
            "[[route]]\nlanguage = [\"xx\"]",
            "2: language holds \"xx\", expected en, de, fr, es, it, pt, nl, ru, el, ar, hi, zh, ja or ko",
        );
        check("[collision]\nhigh = 0.01", "1: low is 0.05, expected at most high, 0.01");
        check("[collision]\nclosed = \"much\"", "2: closed is \"much\", expected a number");
    }

    #[test]
    fn built_in_operators_can_be_left_out() {
        let library =
            Library::parse("include_built_in = true\nexclude_built_in = [\"seed.*\", \"register.academic\"]", "o.toml")
                .unwrap();
        let n_left_out = Library::built_in().operators().len() - library.operators().len();
        let is_seed = |operator: &&Operator| operator.slot == "seed";
        assert_eq!(n_left_out, Library::built_in().operators().iter().filter(is_seed).count() + 1);
    }

    #[test]
    fn plans_say_how_much_is_varied() {
        let text = "[collision]\nintercept = -9\n[[route]]\ntransport = [\"epistula\"]\nmode = \"passthrough\"";
        let library = Library::parse(text, "o.toml").unwrap();
        let messages = [Message::user("Why?")];
        let plan = library.plan(&Facts::default(), Task::Unknown, &messages);
        assert_eq!((plan.amount, plan.candidates(4)), (Amount::Nothing, 1));
        let plan = library.plan(&Facts { transport: "epistula", ..Facts::default() }, Task::Unknown, &messages);
        assert!(plan.mode.is_passthrough());
        let library = Library::parse("[collision]\nintercept = 9", "o.toml").unwrap();
        let plan = library.plan(&Facts::default(), Task::Unknown, &messages);
        assert_eq!((plan.amount, plan.candidates(4), plan.candidates(0)), (Amount::Most, 4, 0));
    }

    #[test]
    fn values_of_the_right_type_are_checked_too() {
        let text = r#"
[[operator]]
name = "a b"
slot = "s"
place = "append"
text = "{{ nobody }}"
weight = -1
sampling = { temperature = 9 }

[[operator]]
name = "a b"
slot = "s"
place = "append"
text = "x"
weight = nan
"#;
        let LibraryError::Invalid { problems, .. } = Library::parse(text, "o.toml").unwrap_err() else { panic!() };
        let lines: Vec<usize> = problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [3, 6, 7, 8, 11, 11, 15], "{problems:#?}");
    }

    #[test]
    fn syntax_errors_have_lines() {
        let error = Library::parse("max_operators = 1\n[[operator]\nname = \"x\n", "o.toml").unwrap_err();
        assert!(error.to_string().lines().all(|line| line.starts_with("o.toml:2: ") || line.starts_with("o.toml:3: ")));
    }

    #[test]
    fn files_are_read_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operators.toml");
        let error = Library::load(&path).unwrap_err();
        assert!(error.to_string().contains("operators.toml"), "{error}");
        std::fs::write(&path, "include_built_in = true\n[[route]]\ntask = [\"followup\"]\nslots = [\"angle\"]\n")
            .unwrap();
        let library = Library::load(&path).unwrap();
        assert_eq!(library.operators(), Library::built_in().operators());
        let facts = Facts { task: "followup", ..Facts::default() };
        assert_eq!(library.route(&facts), Mode::Mutate { slots: vec!["angle".to_owned()] });
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(Library::load(&path), Err(LibraryError::Read { .. })));
    }

    #[test]
    fn names_are_unique_in_code_too() {
        let operator = || Operator::new("a", "s", Place::Append, "x");
        assert!(Library::new(vec![operator(), operator()]).is_err());
        let names: BTreeSet<String> = Library::built_in().operators().iter().map(|o| o.name.clone()).collect();
        assert_eq!(names.len(), Library::built_in().operators().len());
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "(\\[\\[(operator|route)\\]\\]\n|\\[collision\\]\n|name|slot|text|weight|sampling|requires|excludes|words|low|mode| ?= ?|\"x\"|[0-9]|\\{|\\}|\\[|\\]|\n|.){0,30}") {
            let _ = Library::parse(&text, "o.toml");
        }
    }
}
