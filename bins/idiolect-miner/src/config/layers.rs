//! The layers and their merge: flag over environment over file over preset over default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use idiolect_arena::RecordedSpec;
use serde_json::{Value, json};

use super::file::{self, FileLayer};
use super::key::Key;
use super::value::Raw;
use super::{BACKEND_KEYS, BackendConfig, BackendKind, Config, KEYS, PresetKind, check, preset};

/// Where a value comes from, the strongest last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// Nobody gave it, and another setting makes this the better default.
    Implied(&'static str),
    /// The preset of this name.
    Preset(String),
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// This environment variable.
    Environment(String),
    /// This flag.
    Flag(String),
}

impl Origin {
    /// Returns the layer's rank; a higher one wins.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Default | Self::Implied(_) => 0,
            Self::Preset(_) => 1,
            Self::File { .. } => 2,
            Self::Environment(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Implied(why) => write!(f, "default with {why}"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// What the layers hold before they are merged. No layer is read by [`load`] itself: whoever calls it decides.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags: the key, the spelling used (without dashes) and the values given.
    pub flags: Vec<(String, String, Vec<String>)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The file: its path and its text.
    pub file: Option<(PathBuf, String)>,
}

/// The configuration, and where each value of it comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The merged values.
    pub config: Config,
    pub(crate) origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Returns where a key's value comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Returns how many settings somebody gave a value.
    #[must_use]
    pub fn n_given(&self) -> usize {
        self.origins.values().filter(|origin| !matches!(origin, Origin::Default | Origin::Implied(_))).count()
    }

    /// Returns every key with its value and origin, in the order of the reference.
    #[must_use]
    pub fn rows(&self) -> Vec<(String, Value, Origin)> {
        let mut rows: Vec<_> = KEYS
            .iter()
            .map(|key| (key.name.to_owned(), key.show(&self.config), self.origin(key.name).clone()))
            .collect();
        for (i, backend) in self.config.backends.iter().enumerate() {
            for key in BACKEND_KEYS {
                let name = format!("backends.{i}.{}", key.name);
                let origin = self.origin(&name).clone();
                rows.push((name, key.show(backend), origin));
            }
        }
        rows
    }

    /// Returns all values as one JSON object, secrets hidden; with origins each value is `{"value": …, "origin": …}`.
    #[must_use]
    pub fn to_json(&self, with_origins: bool) -> Value {
        let object = self.rows().into_iter().map(|(name, value, origin)| {
            let value = if with_origins { json!({ "value": value, "origin": origin.to_string() }) } else { value };
            (name, value)
        });
        Value::Object(object.collect())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value was given, where it was.
    pub origin: Option<Origin>,
    /// What is wrong, the key and its value included.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) if *origin != Origin::Default => write!(f, "{origin}: {}", self.message),
            _ => f.write_str(&self.message),
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, never none.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} values are wrong:", many.len())?;
                many.iter().try_for_each(|p| write!(f, "\n  {p}"))
            }
        }
    }
}

/// Merges the layers.
///
/// # Errors
/// [`ConfigError`] with every problem found: syntax errors and unknown keys of the file, bad values of any layer (a bad value
/// in the environment counts only where no flag stands above it), and values that contradict each other.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut merge = Merge::new(sources);
    merge.presets();
    merge.file();
    merge.environment();
    merge.flags();
    merge.backends();
    merge.implied();
    check::check(&mut merge.loaded, &mut merge.problems);
    if merge.problems.is_empty() {
        return Ok(merge.loaded);
    }
    // Those of the file as they stand in it, whatever found them; then those of stronger layers.
    merge.problems.sort_by_key(|problem| match &problem.origin {
        Some(Origin::File { line, .. }) => (0, *line),
        Some(origin) => (origin.rank(), 0),
        None => (u8::MAX, 0),
    });
    Err(ConfigError { problems: merge.problems })
}

/// Names the variables that look like ours and set nothing: typing errors, most likely.
#[must_use]
pub fn unknown_variables(env: &BTreeMap<String, String>) -> Vec<String> {
    const OTHERS: [&str; 4] = ["IDIOLECT_CONFIG", "IDIOLECT_E2E", "IDIOLECT_ARENA", "IDIOLECT_BLESS"];
    let known: Vec<String> = KEYS.iter().flat_map(Key::all_env).collect();
    let is_unknown =
        |name: &&String| name.starts_with("IDIOLECT_") && !OTHERS.contains(&name.as_str()) && !known.contains(*name);
    env.keys().filter(is_unknown).cloned().collect()
}

struct Merge<'s> {
    sources: &'s Sources,
    file: FileLayer,
    path: PathBuf,
    loaded: Loaded,
    problems: Vec<Problem>,
}

impl<'s> Merge<'s> {
    fn new(sources: &'s Sources) -> Self {
        let (path, file) = match &sources.file {
            Some((path, text)) => (path.clone(), file::parse(text)),
            None => (PathBuf::new(), FileLayer::default()),
        };
        let config = Config { data_dir: default_data_dir(&sources.env), ..Config::default() };
        let loaded = Loaded { config, origins: BTreeMap::new() };
        Self { sources, file, path, loaded, problems: Vec::new() }
    }

    fn set(&mut self, key: &Key<Config>, raw: &Raw, origin: Origin) {
        match key.read(&mut self.loaded.config, raw) {
            Ok(()) => {
                self.loaded.origins.insert(key.name.to_owned(), origin);
            }
            Err(message) => {
                let message = if key.secret { "has a value of the wrong type".to_owned() } else { message };
                self.problems.push(Problem { origin: Some(origin), message: format!("{} {message}", key.name) });
            }
        }
    }

    /// Finds which preset is asked for by the strongest layer, and applies it.
    fn presets(&mut self) {
        let Some((name, origin)) = self.asked_preset() else { return };
        let Some(preset) = preset(&name) else {
            let names = super::PRESETS.iter().filter(|p| p.kind != PresetKind::Card).map(|p| p.name);
            let names = names.collect::<Vec<_>>().join(", ");
            self.problems.push(Problem {
                origin: Some(origin),
                message: format!("preset is {name:?}, expected one of {names}"),
            });
            return;
        };
        if preset.kind == PresetKind::Card {
            let message = format!("preset {name} is information only, there is nothing to run: {}", preset.about);
            self.problems.push(Problem { origin: Some(origin), message });
            return;
        }
        for (name, value) in preset.values {
            if let Some(key) = KEYS.iter().find(|k| k.name == *name) {
                self.set(key, &Raw::word(*value), Origin::Preset(preset.name.to_owned()));
            }
        }
    }

    fn asked_preset(&self) -> Option<(String, Origin)> {
        let flag = self.sources.flags.iter().find(|(key, _, _)| key == "preset");
        if let Some((_, flag, values)) = flag
            && let Some(value) = values.last()
        {
            return given(value, Origin::Flag(flag.clone()));
        }
        if let Some(value) = self.sources.env.get("IDIOLECT_PRESET").filter(|v| !v.is_empty()) {
            return given(value, Origin::Environment("IDIOLECT_PRESET".to_owned()));
        }
        let entry = self.file.entries.iter().find(|e| e.key == "preset")?;
        match &entry.raw {
            Raw::Text(text) => given(text, Origin::File { path: self.path.clone(), line: entry.line }),
            _ => None,
        }
    }

    fn file(&mut self) {
        for (line, message) in std::mem::take(&mut self.file.problems) {
            let origin = Some(Origin::File { path: self.path.clone(), line });
            self.problems.push(Problem { origin, message });
        }
        let mut entries = std::mem::take(&mut self.file.entries);
        entries.sort_by_key(|e| e.line);
        for entry in entries {
            if let Some(key) = KEYS.iter().find(|k| k.name == entry.key) {
                self.set(key, &entry.raw, Origin::File { path: self.path.clone(), line: entry.line });
            }
        }
    }

    fn environment(&mut self) {
        for key in KEYS {
            if self.sources.flags.iter().any(|(name, _, _)| name == key.name) {
                continue;
            }
            let set = key.all_env().find_map(|name| {
                let value = self.sources.env.get(&name).filter(|v| !v.is_empty())?;
                Some((name, value.clone()))
            });
            if let Some((name, value)) = set {
                self.set(key, &Raw::Word(value), Origin::Environment(name));
            }
        }
    }

    fn flags(&mut self) {
        for (name, flag, values) in &self.sources.flags {
            let Some(key) = KEYS.iter().find(|k| k.name == name) else { continue };
            let raw = match values.as_slice() {
                _ if key.list => Raw::List(values.iter().map(Raw::word).collect()),
                [.., last] => Raw::word(last),
                [] => Raw::word("true"),
            };
            self.set(key, &raw, Origin::Flag(flag.clone()));
        }
    }

    /// Reads the file's entries and keeps those that `backend` names, in its order.
    fn backends(&mut self) {
        let mut described = Vec::new();
        let mut broken = BTreeSet::new();
        for (line, entries) in std::mem::take(&mut self.file.backends) {
            match self.backend(line, &entries) {
                (Some(kind), backend, origins) => described.push((kind, (backend, origins))),
                // Which kind was meant is not known, so nothing else can be said of it.
                (None, backend, _) => _ = broken.insert(backend.name),
            }
        }
        let wanted = self.loaded.config.backend.clone();
        let mut chosen: Vec<(BackendConfig, BTreeMap<String, Origin>)> = Vec::new();
        if wanted.is_empty() {
            chosen = described.into_iter().map(|(_, entry)| entry).collect();
            if chosen.is_empty() {
                chosen.push((BackendConfig::default(), BTreeMap::new()));
            }
        } else {
            for name in &wanted {
                let found = described
                    .iter()
                    .find(|(_, (b, _))| b.name == *name)
                    .or_else(|| described.iter().find(|(_, (b, _))| b.kind.as_str() == *name));
                let kind = [BackendKind::Candle, BackendKind::OpenAi, BackendKind::Echo, BackendKind::Recorded]
                    .into_iter()
                    .find(|k| k.as_str() == *name);
                match (found, kind) {
                    (Some((_, entry)), _) => chosen.push(entry.clone()),
                    (None, Some(kind)) => chosen.push((BackendConfig::of_kind(kind), BTreeMap::new())),
                    (None, None) if broken.contains(name) => {}
                    (None, None) => self.problems.push(Problem {
                        origin: Some(self.loaded.origin("backend").clone()),
                        message: format!(
                            "backend is {name:?}, expected candle, openai, echo, recorded or the name of a [[backends]] entry"
                        ),
                    }),
                }
            }
        }
        if let (Some(model), Some((first, origins))) = (&self.loaded.config.model, chosen.first_mut()) {
            let origin = self.loaded.origin("model").clone();
            if model.starts_with(RecordedSpec::PREFIX) && first.kind != BackendKind::Recorded {
                *first = BackendConfig::of_kind(BackendKind::Recorded);
                *origins = BTreeMap::from([("kind".to_owned(), origin.clone())]);
            }
            first.model = Some(model.clone());
            origins.insert("model".to_owned(), origin);
        }
        for (i, (backend, origins)) in chosen.into_iter().enumerate() {
            self.loaded.config.backends.push(backend);
            self.loaded
                .origins
                .extend(origins.into_iter().map(|(key, origin)| (format!("backends.{i}.{key}"), origin)));
        }
    }

    /// Echo alone is for measuring the protocol: nothing of what it says is worth choosing by. A record knows prompts by their
    /// wording, so that varied ones are none of its.
    fn implied(&mut self) {
        const ECHO_ALONE: &[(&str, &str)] =
            &[("uniqueness.encoder", "off"), ("candidates.count", "1"), ("mutation.recipes", "1")];
        const RECORDED_ALONE: &[(&str, &str)] = &[("mutation.recipes", "1")];
        let are_all = |kind| self.loaded.config.backends.iter().all(|backend| backend.kind == kind);
        let (values, why) = if are_all(BackendKind::Echo) {
            (ECHO_ALONE, "backend echo")
        } else if are_all(BackendKind::Recorded) {
            (RECORDED_ALONE, "backend recorded")
        } else {
            return;
        };
        for (name, value) in values {
            if *self.loaded.origin(name) == Origin::Default
                && let Some(key) = KEYS.iter().find(|key| key.name == *name)
            {
                self.set(key, &Raw::word(*value), Origin::Implied(why));
            }
        }
    }

    /// Reads an entry: its kind where that is a good one, its keys, and where they stand.
    fn backend(
        &mut self,
        line: usize,
        entries: &[file::Entry],
    ) -> (Option<BackendKind>, BackendConfig, BTreeMap<String, Origin>) {
        let at = |path: &Path, line| Origin::File { path: path.to_path_buf(), line };
        let mut target = BackendConfig::default();
        let mut origins = BTreeMap::new();
        // The kind decides the other keys' defaults, so it is read first.
        let kind = entries.iter().find(|e| e.key == "kind");
        let mut good = None;
        if kind.is_none() {
            let message = "backends: an entry needs its kind: candle, openai, echo or recorded".to_owned();
            self.problems.push(Problem { origin: Some(at(&self.path, line)), message });
        }
        for entry in kind.into_iter().chain(entries.iter().filter(|e| e.key != "kind")) {
            let Some(key) = BACKEND_KEYS.iter().find(|k| k.name == entry.key) else { continue };
            let origin = at(&self.path, entry.line);
            match key.read(&mut target, &entry.raw) {
                Ok(()) => {
                    if entry.key == "kind" {
                        target = BackendConfig::of_kind(target.kind);
                        good = Some(target.kind);
                    }
                    origins.insert(entry.key.clone(), origin);
                }
                Err(message) => {
                    let message = format!("backends: {} {message}", entry.key);
                    self.problems.push(Problem { origin: Some(origin), message });
                }
            }
        }
        (good, target, origins)
    }
}

/// Returns a preset's name and origin unless the name says that there is none.
fn given(name: &str, origin: Origin) -> Option<(String, Origin)> {
    (!matches!(name, "none" | "off" | "")).then(|| (name.to_owned(), origin))
}

/// Returns the user's data directory for Idiolect.
fn default_data_dir(env: &BTreeMap<String, String>) -> PathBuf {
    let set = |name| env.get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local").join("share")))
        .map_or_else(|| PathBuf::from(".idiolect"), |base| base.join("idiolect"))
}
