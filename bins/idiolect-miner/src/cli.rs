//! The command line of the miner, made from the table of settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{ConfigError, KEYS, Key, Origin, Problem, Sources, sections};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The layers of configuration.
    pub sources: Sources,
    /// End after the self-query.
    pub once: bool,
    /// Where to say that the axon answers.
    pub ready_file: Option<PathBuf>,
}

/// Flags that `-h` shows; `--help` shows all.
const COMMON: &[&str] = &[
    "network",
    "netuid",
    "preset",
    "data_dir",
    "backend",
    "model",
    "axon.ip",
    "axon.port",
    "wallet.name",
    "wallet.hotkey",
    "wallet.path",
    "policy.allow",
    "candidates.count",
    "uniqueness.encoder",
    "metrics.addr",
];

/// Makes the miner's command.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("idiolect-miner")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Answers Bittensor text prompts: several candidates, the best one that is unlike all others, signed and in time.")
        .after_help(
            "With no arguments: fetches the default model once, serves on 127.0.0.1:8091 without a network, asks itself one signed \
             prompt over gRPC and one over HTTP, prints the replies, and keeps serving.\n\
             Every setting can also stand in a file (--config) or in the environment; `idiolect config show --origin` tells which one counts. \
             -h lists the common flags, --help all of them.",
        );
    config_args(command)
        .arg(
            Arg::new("once")
                .long("once")
                .action(ArgAction::SetTrue)
                .help("Run the self-query and exit: 0 when both replies came, 1 otherwise"),
        )
        .arg(
            Arg::new("ready-file")
                .long("ready-file")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .help(
                    "Write one JSON object there when the axon answers: {\"axon\": …, \"hotkey\": …, \"models\": […]}",
                ),
        )
}

/// Adds `--config` and a flag for every setting to a command.
#[must_use]
pub fn config_args(command: Command) -> Command {
    key_args(command, |_| true)
}

/// Adds `--config` and flags for the settings that `wanted` names to a command.
#[must_use]
pub fn key_args(command: Command, wanted: impl Fn(&str) -> bool) -> Command {
    let command = command.arg(
        Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Read settings from this TOML file [default: miner.toml in the user's configuration directory, if it is there]"),
    );
    let mut args = Vec::new();
    for (section, _, keys) in sections() {
        let heading = if section.is_empty() { "Settings: general" } else { heading(section) };
        let keys = keys.into_iter().filter(|key| wanted(key.name));
        args.extend(keys.map(|key| arg(key).help_heading(heading)));
    }
    command.args(args)
}

fn heading(section: &str) -> &'static str {
    match section {
        "axon" => "Settings: axon (the listener)",
        "wallet" => "Settings: wallet (the key)",
        "policy" => "Settings: policy (who may ask)",
        "transports" => "Settings: transports (which clients)",
        "pool" => "Settings: pool (several backends)",
        "sampling" => "Settings: sampling",
        "candidates" => "Settings: candidates",
        "mutation" => "Settings: mutation",
        "uniqueness" => "Settings: uniqueness",
        "pipeline" => "Settings: pipeline",
        "models" => "Settings: models",
        "metrics" => "Settings: metrics",
        "log" => "Settings: log",
        _ => "Settings",
    }
}

fn arg<C>(key: &Key<C>) -> Arg {
    let mut flags = key.all_flags();
    let first = flags.next().unwrap_or(key.name);
    let doc = key.doc.split_whitespace().collect::<Vec<_>>().join(" ");
    let allowed = if key.expected.is_empty() { String::new() } else { format!(" [{}]", key.expected) };
    let arg = Arg::new(key.name)
        .long(first)
        .aliases(flags.collect::<Vec<_>>())
        .value_name(value_name(key))
        .help(format!("{doc}{allowed}"))
        .hide_short_help(!COMMON.contains(&key.name));
    if key.list {
        arg.action(ArgAction::Append).num_args(1..)
    } else if key.boolean {
        arg.action(ArgAction::Set).num_args(0..=1).default_missing_value("true").overrides_with(key.name)
    } else {
        // `-5s` is a bad duration, which is for the setting to say; to the parser of flags it would be five flags.
        let is_quantity = matches!(key.type_name(), "whole number" | "number" | "duration" | "size");
        arg.action(ArgAction::Set).allow_hyphen_values(is_quantity).overrides_with(key.name)
    }
}

fn value_name<C>(key: &Key<C>) -> &'static str {
    match (key.name, key.type_name()) {
        ("policy.allow", _) => "HOTKEY|any",
        ("policy.deny", _) => "HOTKEY",
        ("model", _) => "SPEC",
        ("backend", _) => "KIND|NAME",
        ("network", _) => "none|file:PATH",
        (_, "true or false") => "true|false",
        (_, "whole number" | "number") => "N",
        (_, "duration") => "DURATION",
        (_, "size") => "SIZE",
        (_, "path") => "PATH",
        (_, "IP address") => "IP",
        (_, "ADDRESS:PORT") => "ADDRESS:PORT|off",
        (_, "text") => "TEXT",
        _ => "VALUE",
    }
}

/// Reads the command line of the miner.
///
/// # Errors
/// What clap says of it; help and version are errors in that sense, too.
pub fn parse<I, T>(args: I) -> Result<ArgMatches, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    command().try_get_matches_from(args)
}

impl Invocation {
    /// Takes the invocation out of what was parsed, reading the configuration file that it names.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn new(matches: &ArgMatches, env: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        Ok(Self {
            sources: sources(matches, env)?,
            once: matches.get_flag("once"),
            ready_file: matches.get_one::<PathBuf>("ready-file").cloned(),
        })
    }
}

/// Collects the layers: the flags in `matches` (of a command made with [`config_args`] or [`key_args`]), the environment, and the file
/// that `--config` or `IDIOLECT_CONFIG` names or that lies in the user's configuration directory.
///
/// # Errors
/// When a file cannot be read.
pub fn sources(matches: &ArgMatches, env: BTreeMap<String, String>) -> Result<Sources, ConfigError> {
    let mut flags = Vec::new();
    for key in KEYS {
        if matches.try_contains_id(key.name).is_err()
            || matches.value_source(key.name) != Some(ValueSource::CommandLine)
        {
            continue;
        }
        let values = matches.get_many::<String>(key.name).into_iter().flatten().cloned().collect();
        let flag = key.all_flags().next().unwrap_or(key.name);
        flags.push((key.name.to_owned(), flag.to_owned(), values));
    }
    let file = match config_path(matches, &env) {
        Some((path, needed)) => read(&path, needed)?.map(|text| (path, text)),
        None => None,
    };
    Ok(Sources { flags, env, file })
}

/// Returns the file to read, and whether it must be there.
fn config_path(matches: &ArgMatches, env: &BTreeMap<String, String>) -> Option<(PathBuf, bool)> {
    if let Some(path) = matches.get_one::<PathBuf>("config") {
        return Some((path.clone(), true));
    }
    let set = |name| env.get(name).filter(|v: &&String| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = set("IDIOLECT_CONFIG") {
        return Some((path, true));
    }
    default_config_path(env).map(|path| (path, false))
}

/// Returns where the configuration file lies when none is named.
#[must_use]
pub fn default_config_path(env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name| env.get(name).filter(|v: &&String| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(base.join("idiolect").join("miner.toml"))
}

fn read(path: &Path, needed: bool) -> Result<Option<String>, ConfigError> {
    let at = |line, message| {
        let origin = Some(Origin::File { path: path.to_path_buf(), line });
        ConfigError { problems: vec![Problem { origin, message }] }
    };
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
                Err(at(line, "this is no UTF-8 text".to_owned()))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !needed => Ok(None),
        Err(error) => {
            let message = format!("cannot read the configuration file {}: {error}", path.display());
            Err(ConfigError { problems: vec![Problem { origin: None, message }] })
        }
    }
}

/// Writes an error and its causes as one line. What is told twice is left out: a cause that the text before it ends with, and
/// a text that its cause ends with, since the cause tells more.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        match told.last_mut() {
            Some(last) if last.ends_with(&cause) => {}
            Some(last) if cause.ends_with(last.as_str()) => *last = cause,
            _ => told.push(cause),
        }
    }
    told.join(": ")
}

/// Returns the process's environment, as far as it is text.
#[must_use]
pub fn process_env() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn known_flags_are_taken_by_every_spelling() {
        let line = "idiolect-miner --subtensor.network none --wallet.name w --wallet.hotkey h --axon.max_workers 3 \
                    --blacklist.allow any 5x --blacklist.force_validator_permit --legacy_http true --candidates 2 --once";
        let matches = parse(line.split_whitespace()).expect("parsed");
        let invocation = Invocation::new(&matches, BTreeMap::new()).expect("collected");
        assert!(invocation.once);
        let keys: Vec<&str> = invocation.sources.flags.iter().map(|(key, _, _)| key.as_str()).collect();
        for key in [
            "network",
            "wallet.name",
            "wallet.hotkey",
            "axon.max_workers",
            "policy.allow",
            "policy.require_permit",
            "transports.legacy_http",
            "candidates.count",
        ] {
            assert!(keys.contains(&key), "{key} in {keys:?}");
        }
        let allow = invocation.sources.flags.iter().find(|(key, _, _)| key == "policy.allow").map(|f| f.2.clone());
        assert_eq!(allow, Some(vec!["any".to_owned(), "5x".to_owned()]));
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = || std::io::Error::other("the disk is gone");
        let told = anyhow::Error::new(cause()).context("cannot read x: the disk is gone").context("no key");
        assert_eq!(one_line(&told), "no key: cannot read x: the disk is gone");
        assert_eq!(one_line(&anyhow::Error::new(cause()).context("cannot read x")), "cannot read x: the disk is gone");
        let short = anyhow::Error::new(cause()).context("the disk is gone").context("no key");
        assert_eq!(one_line(&short), "no key: the disk is gone");
        let long = anyhow::anyhow!("bad request: n is 0").context("n is 0").context("no reply");
        assert_eq!(one_line(&long), "no reply: bad request: n is 0");
    }

    #[test]
    fn a_named_file_must_be_there() {
        let matches = parse(["idiolect-miner", "--config", "/nonexistent/miner.toml"]).expect("parsed");
        let error = Invocation::new(&matches, BTreeMap::new()).expect_err("no such file");
        assert!(
            error.to_string().starts_with("cannot read the configuration file /nonexistent/miner.toml: "),
            "{error}"
        );
    }
}
