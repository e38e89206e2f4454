//! The operators and routes of a TOML file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use idiolect_backend::{Preset, Stage};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::operator::{Operator, Place, SamplingOverrides};
use crate::route::{Facts, Mode, Route, route};
use crate::task::Task;

/// Most operators that a file may hold.
const MAX_OPERATORS: usize = 1_000;

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
/// A file has any number of `[[operator]]` and `[[route]]` tables and, above them, `include_built_in` (default false) and
/// `max_operators` of one recipe (default 2). An empty file changes nothing in any prompt.
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
///     place = "append"                 # or system, prepend
///     text = "Answer using academic language."
///     weight = 2.0                     # default 1
///     tasks = ["answer", "unknown"]    # default: all
///     sampling = { temperature = 0.8 }  # or a preset and stages of a chain, see `SamplingOverrides`
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
/// assert!(text.contains("operators.toml:3: place is \"middle\", expected system, prepend or append"));
/// # Ok::<(), idiolect_mutation::LibraryError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Library {
    operators: Vec<Operator>,
    routes: Vec<Route>,
    max_operators: usize,
}

impl Default for Library {
    /// Returns the library that changes nothing.
    fn default() -> Self {
        Self { operators: Vec::new(), routes: Vec::new(), max_operators: 2 }
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
            let mut note = |message| problems.push(Problem { line: 0, message });
            check_operator(&operator, &library.operators, &mut note);
            library.operators.push(operator);
        }
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
        let mut reader = Reader { text, problems: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            reader.note(at, error.message().trim().replace('\n', "; "));
        }
        let mut library = Self::default();
        if reader.problems.is_empty() {
            library = reader.library(document.get_ref());
        }
        if reader.problems.is_empty() {
            return Ok(library);
        }
        reader.problems.sort_by_key(|problem| problem.line);
        Err(LibraryError::Invalid { name: name.to_owned(), problems: reader.problems })
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

    /// Finds what becomes of a request; see [`route`].
    #[must_use]
    pub fn route(&self, facts: &Facts<'_>) -> Mode {
        route(&self.routes, facts)
    }
}

fn check_operator(operator: &Operator, others: &[Operator], note: &mut impl FnMut(String)) {
    let Operator { name, slot, weight, .. } = operator;
    let well_formed = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    for (key, value) in [("name", name), ("slot", slot)] {
        if !well_formed(value) {
            note(format!("{key} is {value:?}, expected letters, digits, dots, dashes and underscores"));
        }
    }
    if others.iter().any(|other| other.name == *name) {
        note(format!("name {name:?} is taken by an operator above"));
    }
    // The bound keeps sums of weights finite.
    if !(0.0..=1e9).contains(weight) {
        note(format!("weight is {weight}, expected 0 to 1000000000"));
    }
    if let Err(idiolect_backend::Error::InvalidRequest(reason)) = operator.sampling.validate() {
        note(format!("sampling: {reason}"));
    }
    // A few seeds, so that a bad element of a pick list comes to light.
    let tasks = if operator.tasks.is_empty() { &Task::ALL[..] } else { &operator.tasks };
    let trials = tasks.iter().flat_map(|&task| (0..8).map(move |seed| (task, seed)));
    if let Some(error) = trials.into_iter().find_map(|(task, seed)| operator.render(task, seed).err()) {
        note(format!("text: {error}"));
    }
}

/// Walks the parsed file and notes everything that is wrong.
struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn note(&mut self, at: usize, message: impl Into<String>) {
        let line = self.text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1;
        self.problems.push(Problem { line, message: message.into() });
    }

    fn expected(&mut self, key: &str, value: &Value<'_>, expected: &str) {
        let shown = match value.get_ref() {
            DeValue::String(s) => format!("{s:?}"),
            other => with_article(other.type_str()),
        };
        self.note(value.span().start, format!("{key} is {shown}, expected {expected}"));
    }

    fn library(&mut self, document: &DeTable<'_>) -> Library {
        let mut library = Library::default();
        let mut include_built_in = false;
        for (key, value) in document {
            match key.get_ref().as_ref() {
                "include_built_in" => include_built_in = self.bool("include_built_in", value).unwrap_or(false),
                "max_operators" => {
                    let max = self.integer("max_operators", value, 1, 8).unwrap_or(1);
                    library.max_operators = usize::try_from(max).unwrap_or(1);
                }
                "operator" | "route" => {}
                other => self.note(
                    key.span().start,
                    format!("unknown key {other:?}, expected include_built_in, max_operators, operator or route"),
                ),
            }
        }
        if include_built_in {
            library.operators = Library::built_in().operators;
        }
        for (at, table) in self.tables(document, "operator") {
            if library.operators.len() >= MAX_OPERATORS {
                self.note(at, format!("more than {MAX_OPERATORS} operators"));
                break;
            }
            let n_before = self.problems.len();
            let operator = self.operator(at, table);
            let n_noted = self.problems.len();
            let is_noted = |key: &str, problems: &[Problem]| {
                problems.iter().any(|p| p.message.starts_with(key) || p.message.ends_with(&format!(" no {key}")))
            };
            let mut found = Vec::new();
            check_operator(&operator, &library.operators, &mut |message| found.push(message));
            for message in found {
                let key = message.split([' ', ':']).next().unwrap_or_default();
                // What is missing or of a wrong type was noted as such.
                if !is_noted(key, &self.problems[n_before..n_noted]) {
                    let line_at = table.get(key).map_or(at, |value| value.span().start);
                    self.note(line_at, message);
                }
            }
            library.operators.push(operator);
        }
        library.routes = self.tables(document, "route").into_iter().filter_map(|(at, t)| self.route(at, t)).collect();
        library
    }

    /// Returns the tables of an array of tables, each with its place.
    fn tables<'t, 'i>(&mut self, document: &'t DeTable<'i>, key: &str) -> Vec<(usize, &'t DeTable<'i>)> {
        let Some(value) = document.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.expected(key, value, &format!("[[{key}]] tables"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::Table(table) => tables.push((item.span().start, table)),
                _ => self.expected(key, item, "a table"),
            }
        }
        tables
    }

    fn operator(&mut self, at: usize, table: &DeTable<'_>) -> Operator {
        let mut operator = Operator::new("", "", Place::Append, "");
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "name" => operator.name = self.string("name", value).unwrap_or_default(),
                "slot" => operator.slot = self.string("slot", value).unwrap_or_default(),
                "text" => operator.text = self.string("text", value).unwrap_or_default(),
                "place" => {
                    if let Some(name) = self.string("place", value) {
                        match name.parse() {
                            Ok(place) => operator.place = place,
                            Err(message) => self.note(value.span().start, format!("place {message}")),
                        }
                    }
                }
                "version" => {
                    let version = self.integer("version", value, 0, i64::from(u32::MAX)).unwrap_or(1);
                    operator.version = u32::try_from(version).unwrap_or(1);
                }
                "weight" => operator.weight = self.number("weight", value).unwrap_or(1.0),
                "tasks" => {
                    for name in self.strings("tasks", value) {
                        match name.parse() {
                            Ok(task) => operator.tasks.push(task),
                            Err(error) => self.note(value.span().start, format!("tasks: {error}")),
                        }
                    }
                }
                "sampling" => operator.sampling = self.sampling(value),
                other => self.note(
                    key.span().start,
                    format!(
                        "unknown key {other:?}, expected name, slot, version, place, text, weight, tasks or sampling"
                    ),
                ),
            }
        }
        for key in ["name", "slot", "place", "text"] {
            if !table.contains_key(key) {
                self.note(at, format!("this operator has no {key}"));
            }
        }
        operator
    }

    fn sampling(&mut self, value: &Value<'_>) -> SamplingOverrides {
        let mut sampling = SamplingOverrides::default();
        let DeValue::Table(table) = value.get_ref() else {
            self.expected("sampling", value, "a table");
            return sampling;
        };
        for (key, value) in table {
            let key_text = key.get_ref().as_ref();
            #[expect(clippy::cast_possible_truncation, reason = "sampling settings are f32 wherever they are used")]
            let mut number = || self.number(key_text, value).map(|v| v as f32);
            match key_text {
                "temperature" => sampling.temperature = number(),
                "top_p" => sampling.top_p = number(),
                "min_p" => sampling.min_p = number(),
                "repetition_penalty" => sampling.repetition_penalty = number(),
                "frequency_penalty" => sampling.frequency_penalty = number(),
                "presence_penalty" => sampling.presence_penalty = number(),
                "top_k" => {
                    sampling.top_k = self.integer("top_k", value, 0, 1_000_000).and_then(|v| u32::try_from(v).ok());
                }
                "preset" => {
                    let name = self.string("preset", value);
                    match name.as_deref().map(str::parse::<Preset>).transpose() {
                        Ok(preset) => sampling.preset = preset,
                        Err(problem) => self.note(value.span().start, problem),
                    }
                }
                "stages" => match Vec::<Stage>::deserialize(ValueDeserializer::from(value.clone())) {
                    Ok(stages) => sampling.stages = stages,
                    Err(error) => self.note(value.span().start, format!("stages: {}", error.message())),
                },
                other => self.note(key.span().start, format!("unknown sampling setting {other:?}")),
            }
        }
        sampling
    }

    fn route(&mut self, at: usize, table: &DeTable<'_>) -> Option<Route> {
        let n_before = self.problems.len();
        let mut route = Route { transport: Vec::new(), task: Vec::new(), mode: Mode::mutate() };
        let mut slots = Vec::new();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "transport" => {
                    route.transport = self.strings("transport", value);
                    let known = ["grpc", "http", "epistula", "btauth"];
                    if let Some(name) = route.transport.iter().find(|name| !known.contains(&name.as_str())) {
                        let message = format!("transport holds {name:?}, expected grpc, http, epistula or btauth");
                        self.note(value.span().start, message);
                    }
                }
                "task" => route.task = self.strings("task", value),
                "slots" => slots = self.strings("slots", value),
                "mode" => match self.string("mode", value).as_deref() {
                    Some("passthrough") => route.mode = Mode::Passthrough,
                    Some("mutate") | None => {}
                    Some(_) => self.expected("mode", value, "passthrough or mutate"),
                },
                other => self
                    .note(key.span().start, format!("unknown key {other:?}, expected transport, task, mode or slots")),
            }
        }
        if !slots.is_empty() {
            match &mut route.mode {
                Mode::Mutate { slots: allowed } => *allowed = slots,
                _ => self.note(at, "slots have no meaning in a passthrough route"),
            }
        }
        (self.problems.len() == n_before).then_some(route)
    }

    fn string(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        if let DeValue::String(s) = value.get_ref() {
            return Some(s.clone().into_owned());
        }
        self.expected(key, value, "a string");
        None
    }

    fn strings(&mut self, key: &str, value: &Value<'_>) -> Vec<String> {
        let DeValue::Array(items) = value.get_ref() else {
            self.expected(key, value, "a list of strings");
            return Vec::new();
        };
        items.iter().filter_map(|item| self.string(key, item)).collect()
    }

    fn bool(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        if let DeValue::Boolean(b) = value.get_ref() {
            return Some(*b);
        }
        self.expected(key, value, "true or false");
        None
    }

    fn integer(&mut self, key: &str, value: &Value<'_>, min: i64, max: i64) -> Option<i64> {
        let DeValue::Integer(integer) = value.get_ref() else {
            self.expected(key, value, "a whole number");
            return None;
        };
        let parsed = i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok();
        let in_range = parsed.filter(|v| (min..=max).contains(v));
        if in_range.is_none() {
            self.note(value.span().start, format!("{key} is {integer}, expected {min} to {max}"));
        }
        in_range
    }

    fn number(&mut self, key: &str, value: &Value<'_>) -> Option<f64> {
        let parsed = match value.get_ref() {
            DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().replace('_', "").parse().ok(),
            _ => None,
        };
        if parsed.is_none() {
            self.expected(key, value, "a number");
        }
        parsed
    }
}

fn with_article(kind: &str) -> String {
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
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
    use crate::guard;

    #[test]
    fn the_built_in_operators_are_sound() {
        let library = Library::built_in();
        assert!(library.operators().len() >= 12);
        let texts: Vec<&str> = library.operators().iter().map(|o| o.text.as_str()).collect();
        assert!(texts.contains(&"Answer using academic language."));
        for task in Task::ALL {
            assert!(library.operators().iter().any(|o| o.is_for(task)), "{task}");
        }
        for operator in library.operators() {
            for seed in 0..32 {
                let text = operator.render(operator.tasks[0], seed).unwrap();
                for task in Task::ALL {
                    // An operator must not talk the model into what the guard flags.
                    assert!(guard::check(task, "", &text).is_empty(), "{text}");
                }
                assert!(!text.contains(['?', '\n', '{']), "{text}");
            }
        }
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
                (24, "unknown sampling setting \"heat\""),
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
        fn no_text_is_a_panic(text in "(\\[\\[(operator|route)\\]\\]\n|name|text|weight|sampling|mode| ?= ?|\"x\"|[0-9]|\\{|\\}|\\[|\\]|\n|.){0,30}") {
            let _ = Library::parse(&text, "o.toml");
        }
    }
}
