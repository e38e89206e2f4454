//! Reading a library's TOML: every bad value is found, with its line.

use idiolect_backend::{Preset, Stage};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::check::{check_operator, check_relations};
use crate::library::Problem;
use crate::operator::DEFAULT_MAX_TOKENS;
use crate::shape::LANGUAGES;
use crate::{CollisionModel, Library, Mode, NamePattern, Operator, Place, Route, SamplingRanges, Setting};

/// Most operators that a file may hold.
const MAX_OPERATORS: usize = 1_000;

pub(crate) const FILE_KEYS: [&str; 9] = [
    "include_built_in",
    "exclude_built_in",
    "max_operators",
    "max_added_tokens",
    "allow_rewrite",
    "allow_paraphrase",
    "collision",
    "operator",
    "route",
];
pub(crate) const OPERATOR_KEYS: [&str; 14] = [
    "name",
    "slot",
    "version",
    "place",
    "text",
    "weight",
    "tasks",
    "sampling",
    "excludes",
    "requires",
    "max_tokens",
    "forbid",
    "backend",
    "model",
];
pub(crate) const SAMPLING_KEYS: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "preset",
    "stages",
];
pub(crate) const ROUTE_KEYS: [&str; 9] =
    ["transport", "task", "validator", "words", "form", "context", "language", "mode", "slots"];
pub(crate) const COLLISION_KEYS: [&str; 13] = [
    "enabled",
    "low",
    "high",
    "prefer",
    "prefer_factor",
    "intercept",
    "augment",
    "followup",
    "answer",
    "ln_expected_words",
    "closed",
    "open",
    "ln_prompt_tokens",
];
pub(crate) const TRANSPORTS: [&str; 4] = ["grpc", "http", "epistula", "btauth"];

/// Walks the parsed file and notes everything that is wrong.
pub(crate) struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

type Value<'i> = Spanned<DeValue<'i>>;

/// Returns the place of a key's value; that of its table where the key is not there.
fn place_of(key: &str, at: usize, table: &DeTable<'_>) -> usize {
    table.get(key).map_or(at, |value| value.span().start)
}

impl<'a> Reader<'a> {
    /// Reads a library, or finds everything that is wrong, by line.
    pub(crate) fn read(text: &'a str) -> Result<Library, Vec<Problem>> {
        let mut reader = Self { text, problems: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            reader.note(at, error.message().trim().replace('\n', "; "));
        }
        let mut library = Library::default();
        if reader.problems.is_empty() {
            library = reader.library(document.get_ref());
        }
        if reader.problems.is_empty() {
            return Ok(library);
        }
        reader.problems.sort_by_key(|problem| problem.line);
        Err(reader.problems)
    }

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
        let mut left_out = Vec::new();
        let mut left_out_at = 0;
        for (key, value) in document {
            match key.get_ref().as_ref() {
                "include_built_in" => include_built_in = self.bool("include_built_in", value).unwrap_or(false),
                "exclude_built_in" => {
                    left_out = self.patterns("exclude_built_in", value);
                    left_out_at = value.span().start;
                }
                "max_operators" => {
                    let max = self.integer("max_operators", value, 1, 8).unwrap_or(1);
                    library.max_operators = usize::try_from(max).unwrap_or(1);
                }
                "max_added_tokens" => {
                    let max = self.integer("max_added_tokens", value, 1, 1000).unwrap_or(80);
                    library.max_added_tokens = u32::try_from(max).unwrap_or(80);
                }
                "allow_rewrite" => library.allow_rewrite = self.bool("allow_rewrite", value).unwrap_or(false),
                "allow_paraphrase" => {
                    library.allow_paraphrase = self.bool("allow_paraphrase", value).unwrap_or(false);
                }
                "collision" => library.collision = self.collision(value),
                "operator" | "route" => {}
                other => self.unknown(key.span().start, other, &FILE_KEYS),
            }
        }
        if include_built_in {
            library.operators = Library::built_in().operators;
            library.operators.retain(|operator| !left_out.iter().any(|pattern| pattern.matches(&operator.name)));
        } else if !left_out.is_empty() {
            self.note(left_out_at, "exclude_built_in is given, expected include_built_in = true beside it");
        }
        let n_built_in = library.operators.len();
        let tables = self.tables(document, "operator");
        for (at, table) in &tables {
            if library.operators.len() >= MAX_OPERATORS {
                self.note(*at, format!("operator: more than {MAX_OPERATORS} of them, expected fewer"));
                break;
            }
            let n_before = self.problems.len();
            let operator = self.operator(*at, table);
            let noted = self.problems.split_off(n_before);
            let is_noted = |key: &str| {
                noted.iter().any(|p| p.message.starts_with(key) || p.message.contains(&format!(" has no {key}")))
            };
            let mut found = Vec::new();
            check_operator(&operator, &library.operators, &mut |key, message| found.push((key.to_owned(), message)));
            found.retain(|(key, _)| !is_noted(key));
            self.problems.extend(noted);
            for (key, message) in found {
                // What is missing or of a wrong type was noted as such.
                self.note(place_of(&key, *at, table), message);
            }
            library.operators.push(operator);
        }
        for (i, key, message) in check_relations(&library.operators, library.max_operators) {
            match i.checked_sub(n_built_in).and_then(|i| tables.get(i)) {
                Some((at, table)) => self.note(place_of(key, *at, table), message),
                // A built-in operator requires one that was left out.
                None => self.note(left_out_at, format!("{}: {message}", library.operators[i].name)),
            }
        }
        library.routes = self.tables(document, "route").into_iter().filter_map(|(at, t)| self.route(at, t)).collect();
        library
    }

    fn unknown(&mut self, at: usize, key: &str, expected: &[&str]) {
        let (last, others) = expected.split_last().unwrap_or((&"", &[]));
        self.note(at, format!("unknown key {key:?}, expected {} or {last}", others.join(", ")));
    }

    fn collision(&mut self, value: &Value<'_>) -> CollisionModel {
        let mut model = CollisionModel::default();
        let DeValue::Table(table) = value.get_ref() else {
            self.expected("collision", value, "a table");
            return model;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let number = match name {
                "enabled" => {
                    model.enabled = self.bool("enabled", value).unwrap_or(true);
                    continue;
                }
                "prefer" => {
                    model.prefer = self.strings("prefer", value);
                    continue;
                }
                "low" => &mut model.low,
                "high" => &mut model.high,
                "prefer_factor" => &mut model.prefer_factor,
                "intercept" => &mut model.intercept,
                "augment" => &mut model.augment,
                "followup" => &mut model.followup,
                "answer" => &mut model.answer,
                "ln_expected_words" => &mut model.ln_expected_words,
                "closed" => &mut model.closed,
                "open" => &mut model.open,
                "ln_prompt_tokens" => &mut model.ln_prompt_tokens,
                other => {
                    self.unknown(key.span().start, other, &COLLISION_KEYS);
                    continue;
                }
            };
            if let Some(value) = self.number(name, value) {
                *number = value;
            }
        }
        for (key, message) in model.problems() {
            self.note(place_of(key, value.span().start, table), message);
        }
        model
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
        let mut operator = Operator::new("", "", Place::System, "");
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
                "version" => operator.version = self.u32("version", value, 0, u32::MAX).unwrap_or(1),
                "weight" => operator.weight = self.number("weight", value).unwrap_or(1.0),
                "max_tokens" => {
                    operator.max_tokens = self.u32("max_tokens", value, 1, 1000).unwrap_or(DEFAULT_MAX_TOKENS);
                }
                "tasks" => {
                    for name in self.strings("tasks", value) {
                        match name.parse() {
                            Ok(task) => operator.tasks.push(task),
                            Err(error) => self.note(value.span().start, format!("tasks: {error}")),
                        }
                    }
                }
                "excludes" => operator.excludes = self.patterns("excludes", value),
                "requires" => operator.requires = self.patterns("requires", value),
                "forbid" => operator.forbid = self.strings("forbid", value),
                "backend" => operator.backend = self.string("backend", value),
                "model" => operator.model = self.string("model", value),
                "sampling" => operator.sampling = self.sampling(value),
                other => self.unknown(key.span().start, other, &OPERATOR_KEYS),
            }
        }
        // What changes sampling, the backend or the model only needs no text.
        let changes_else = ["sampling", "backend", "model"].iter().any(|key| table.contains_key(*key));
        let needed: &[&str] = if changes_else && !table.contains_key("text") {
            &["name", "slot"]
        } else {
            &["name", "slot", "place", "text"]
        };
        for key in needed {
            if !table.contains_key(*key) {
                self.note(at, format!("this operator has no {key}, expected one"));
            }
        }
        operator
    }

    fn sampling(&mut self, value: &Value<'_>) -> SamplingRanges {
        let mut sampling = SamplingRanges::default();
        let DeValue::Table(table) = value.get_ref() else {
            self.expected("sampling", value, "a table");
            return sampling;
        };
        for (key, value) in table {
            let key_text = key.get_ref().as_ref();
            let mut number = || self.setting(key_text, value);
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
                other => self.unknown(key.span().start, other, &SAMPLING_KEYS),
            }
        }
        sampling
    }

    fn setting(&mut self, key: &str, value: &Value<'_>) -> Option<Setting> {
        #[expect(clippy::cast_possible_truncation, reason = "sampling settings are f32 wherever they are used")]
        let mut number = |value: &Value<'_>| self.number(key, value).map(|v| v as f32);
        match value.get_ref() {
            DeValue::Array(ends) if ends.len() == 2 => Some(Setting::Drawn([number(&ends[0])?, number(&ends[1])?])),
            DeValue::Array(ends) => {
                let message =
                    format!("{key} is a list of {}, expected a number or the two ends of a range", ends.len());
                self.note(value.span().start, message);
                None
            }
            _ => number(value).map(Setting::Fixed),
        }
    }

    fn route(&mut self, at: usize, table: &DeTable<'_>) -> Option<Route> {
        let n_before = self.problems.len();
        let mut route = Route::default();
        let mut slots = Vec::new();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "transport" => route.transport = self.among("transport", value, &TRANSPORTS),
                "task" => route.task = self.strings("task", value),
                "validator" => {
                    route.validator = self.strings("validator", value);
                    // SS58 of a key: 47 or 48 characters of base 58.
                    let is_key = |s: &str| {
                        (46..=49).contains(&s.len())
                            && s.chars().all(|c| c.is_ascii_alphanumeric() && !"0OIl".contains(c))
                    };
                    if let Some(key) = route.validator.iter().find(|key| !is_key(key)) {
                        self.note(value.span().start, format!("validator holds {key:?}, expected hotkeys like 5C4h…"));
                    }
                }
                "words" => route.words = self.range("words", value),
                "form" => {
                    for name in self.strings("form", value) {
                        match name.parse() {
                            Ok(form) => route.form.push(form),
                            Err(message) => self.note(value.span().start, format!("form holds {message}")),
                        }
                    }
                }
                "context" => route.context = self.bool("context", value),
                "language" => route.language = self.among("language", value, &LANGUAGES),
                "slots" => slots = self.strings("slots", value),
                "mode" => match self.string("mode", value).as_deref() {
                    Some("passthrough") => route.mode = Mode::Passthrough,
                    Some("mutate") | None => {}
                    Some(_) => self.expected("mode", value, "passthrough or mutate"),
                },
                other => self.unknown(key.span().start, other, &ROUTE_KEYS),
            }
        }
        if !slots.is_empty() {
            match &mut route.mode {
                Mode::Mutate { slots: allowed } => *allowed = slots,
                _ => self
                    .note(at, "slots have no meaning in a passthrough route, expected mode = \"mutate\" or no slots"),
            }
        }
        (self.problems.len() == n_before).then_some(route)
    }

    /// Reads the two ends of a range of whole numbers.
    fn range(&mut self, key: &str, value: &Value<'_>) -> Option<(u32, u32)> {
        match value.get_ref() {
            DeValue::Array(ends) if ends.len() == 2 => {
                let low = self.u32(key, &ends[0], 0, u32::MAX)?;
                Some((low, self.u32(key, &ends[1], low, u32::MAX)?))
            }
            _ => {
                self.expected(key, value, "the fewest and the most, as in [0, 60]");
                None
            }
        }
    }

    fn patterns(&mut self, key: &str, value: &Value<'_>) -> Vec<NamePattern> {
        let mut patterns = Vec::new();
        for text in self.strings(key, value) {
            match text.parse() {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => self.note(value.span().start, format!("{key} holds {error}")),
            }
        }
        patterns
    }

    /// Reads strings that have to be among these.
    fn among(&mut self, key: &str, value: &Value<'_>, known: &[&str]) -> Vec<String> {
        let strings = self.strings(key, value);
        if let Some(name) = strings.iter().find(|name| !known.contains(&name.as_str())) {
            let (last, others) = known.split_last().unwrap_or((&"", &[]));
            self.note(value.span().start, format!("{key} holds {name:?}, expected {} or {last}", others.join(", ")));
        }
        strings
    }

    fn u32(&mut self, key: &str, value: &Value<'_>, min: u32, max: u32) -> Option<u32> {
        self.integer(key, value, min.into(), max.into()).and_then(|v| u32::try_from(v).ok())
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
