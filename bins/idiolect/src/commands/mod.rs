//! The subcommands: one file each, with `command` (its arguments) and `run`.

mod arena;
mod ask;
mod bench;
mod completions;
mod config;
mod erase;
mod explain;
mod history;
mod ladder;
mod man;
mod models;
mod mutate;
mod plan;
mod probe;
mod score;
mod unique;
mod wallet;
mod whatif;

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use idiolect_miner::config::{Config, Loaded, Origin, load as load_config, parse_duration};
use idiolect_miner::{app, cli, telemetry};
use idiolect_protocol::{Message, Prompt, Role};
use idiolect_validator::{Profile, ProfileError};
use sqlx::SqlitePool;

use crate::picture::extension;

/// What `--timeout` may be.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// Makes the tool's command.
pub(crate) fn command() -> Command {
    Command::new("idiolect")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Looks after an Idiolect miner: ask, probe, explain, models, configuration, keys")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            ask::command(),
            probe::command(),
            explain::command(),
            bench::command(),
            unique::command(),
            score::command(),
            mutate::command(),
            arena::command(),
            whatif::command(),
            plan::command(),
            ladder::command(),
            history::command(),
            erase::command(),
            models::command(),
            config::command(),
            wallet::command(),
            completions::command(),
            man::command(),
        ])
}

/// Runs the subcommand that was asked for.
///
/// # Errors
/// Whatever the subcommand could not do.
pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("ask", matches)) => ask::run(matches).await,
        Some(("probe", matches)) => probe::run(matches).await,
        Some(("bench", matches)) => bench::run(matches).await,
        Some(("explain", matches)) => explain::run(matches).await,
        Some(("unique", matches)) => unique::run(matches).await,
        Some(("score", matches)) => score::run(matches).await,
        Some(("mutate", matches)) => mutate::run(matches).await,
        Some(("arena", matches)) => arena::run(matches).await,
        Some(("whatif", matches)) => whatif::run(matches).await,
        Some(("plan", matches)) => plan::run(matches),
        Some(("ladder", matches)) => ladder::run(matches),
        Some(("history", matches)) => history::run(matches).await,
        Some(("erase", matches)) => erase::run(matches).await,
        Some(("models", matches)) => models::run(matches).await,
        Some(("config", matches)) => config::run(matches),
        Some(("wallet", matches)) => wallet::run(matches),
        Some(("completions", matches)) => completions::run(matches),
        Some(("man", matches)) => man::run(matches),
        _ => Ok(()),
    }
}

/// A command line whose arguments do not go together.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The flag of every command that prints data.
fn json_arg() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

/// Returns the file that `--plot` names, if it does.
///
/// # Errors
/// [`Usage`] where its name says no format that can be drawn: before anything is computed.
fn plot(matches: &ArgMatches) -> Result<Option<&PathBuf>, Usage> {
    let plot = matches.get_one::<PathBuf>("plot");
    match plot.filter(|path| !matches!(extension(path).as_deref(), Some("png" | "svg"))) {
        Some(path) => Err(Usage(format!("--plot {} must end in .png or .svg", path.display()))),
        None => Ok(plot),
    }
}

/// The argument that names the validators' arithmetic.
fn profile_arg() -> Arg {
    Arg::new("profile").long("profile").value_name("NAME|FILE").help(
        "The validators' arithmetic: openvalidators-1.2, text-prompting-2.1, or a file [default: uniqueness.profile]",
    )
}

/// Returns the profile that was named, else the configured one.
///
/// # Errors
/// [`Usage`] for a name that no profile has, and what is wrong with a file.
fn profile(matches: &ArgMatches, config: &Config) -> anyhow::Result<Profile> {
    let name = matches.get_one::<String>("profile").unwrap_or(&config.uniqueness.profile);
    Profile::find(name).map_err(|problem| match problem {
        ProfileError::Unknown(_) => Usage(format!("--profile: {problem}")).into(),
        problem => problem.into(),
    })
}

/// Reads how long to wait: a number of seconds, or a duration with its unit.
fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if (MIN_TIMEOUT..=MAX_TIMEOUT).contains(&time) => Ok(time),
        Ok(_) => Err(format!("is {text}, expected 1ms to 1h")),
        Err(problem) => Err(problem),
    }
}

/// The arguments that add to a prompt.
fn prompt_args(command: Command) -> Command {
    command.arg(Arg::new("system").long("system").value_name("TEXT").help("Instructions that stand above the prompt"))
}

/// Makes the prompt out of `prompt` or `message`, and `system`.
fn prompt_of(matches: &ArgMatches) -> anyhow::Result<Prompt> {
    let given = ["prompt", "message"].into_iter().find_map(|name| matches.try_get_one::<String>(name).ok().flatten());
    let mut text = given.cloned().unwrap_or_default();
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("the prompt on standard input cannot be read")?;
    }
    let mut messages = Vec::new();
    if let Some(system) = matches.get_one::<String>("system") {
        messages.push(Message::new(Role::System, system.as_str()));
    }
    if text.trim().is_empty() {
        bail!("the prompt is empty; give some text");
    }
    messages.push(Message::new(Role::User, text));
    Ok(Prompt::new(messages)?)
}

/// Loads the configuration that a command's settings, the environment and the file give.
fn load(matches: &ArgMatches) -> anyhow::Result<Loaded> {
    let sources = cli::sources(matches, cli::process_env())?;
    Ok(load_config(&sources)?)
}

/// Starts logging: warnings only, unless the configuration says otherwise.
fn start_logging(loaded: &Loaded) -> anyhow::Result<()> {
    let mut log = loaded.config.log.clone();
    if *loaded.origin("log.filter") == Origin::Default {
        log.filter = "warn".to_owned();
    }
    telemetry::start_logging(&log)
}

/// Opens the store of a miner that has run before.
async fn existing_store(config: &Config) -> anyhow::Result<SqlitePool> {
    let path = app::store_path(&config.data_dir);
    if !path.exists() {
        bail!(
            "there is no store at {}; a miner makes it when it starts, and --data-dir names its place",
            path.display()
        );
    }
    app::open_store(&config.data_dir).await
}
