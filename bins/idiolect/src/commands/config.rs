//! `idiolect config`: what is set, from where, and what can be set.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_miner::cli;
use idiolect_miner::config::{self, PRESETS, PresetKind};
use serde_json::json;

use super::json_arg;
use crate::output;

pub(crate) fn command() -> Command {
    Command::new("config")
        .about("Show, check and explain the miner's configuration")
        .subcommand_required(true)
        .subcommand(
            cli::config_args(Command::new("show").about("Show every setting as the miner would see it"))
                .arg(
                    Arg::new("origin")
                        .long("origin")
                        .action(ArgAction::SetTrue)
                        .help("Show where each value comes from"),
                )
                .arg(json_arg()),
        )
        .subcommand(cli::config_args(
            Command::new("check")
                .about("Say whether the miner would start with this configuration, and everything that is wrong"),
        ))
        .subcommand(
            Command::new("init")
                .about("Write a configuration file with every setting in it, all commented out")
                .arg(
                    Arg::new("path")
                        .value_parser(value_parser!(PathBuf))
                        .help("The file [default: miner.toml in the user's configuration directory]"),
                )
                .arg(Arg::new("force").long("force").action(ArgAction::SetTrue).help("Replace a file that is there")),
        )
        .subcommand(
            Command::new("presets")
                .about("List the presets, or show one; sn1-apex and sn11-trajectory say what became of those networks")
                .arg(Arg::new("name").help("The preset to show"))
                .arg(json_arg()),
        )
        .subcommand(Command::new("reference").about("Print the reference of all settings as Markdown"))
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("show", matches)) => show(matches),
        Some(("check", matches)) => check(matches),
        Some(("init", matches)) => init(matches),
        Some(("presets", matches)) => presets(matches),
        _ => Ok(output::say(config::reference().trim_end())?),
    }
}

fn show(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    let with_origin = matches.get_flag("origin");
    if matches.get_flag("json") {
        return output::json(&loaded.to_json(with_origin));
    }
    let rows = loaded.rows().into_iter().map(|(name, value, origin)| {
        let mut row = vec![name, config::plain(&value)];
        if with_origin {
            row.push(origin.to_string());
        }
        row
    });
    let head: &[&str] = if with_origin { &["key", "value", "origin"] } else { &["key", "value"] };
    Ok(output::columns(head, &rows.collect::<Vec<_>>())?)
}

fn check(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    for variable in config::unknown_variables(&cli::process_env()) {
        output::say(format!("environment {variable} sets nothing; see idiolect config reference"))?;
    }
    Ok(output::say(format!(
        "the configuration is good; settings that differ from their defaults: {}",
        loaded.n_given()
    ))?)
}

fn init(matches: &ArgMatches) -> anyhow::Result<()> {
    let path = match matches.get_one::<PathBuf>("path") {
        Some(path) => path.clone(),
        None => cli::default_config_path(&cli::process_env())
            .context("there is no home directory; name the file, as in: idiolect config init miner.toml")?,
    };
    if path.exists() && !matches.get_flag("force") {
        bail!("{} is there already; name another file, or replace it with --force", path.display());
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    std::fs::write(&path, config::template()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(output::say(format!("wrote {}; take away the # before the settings you change", path.display()))?)
}

fn presets(matches: &ArgMatches) -> anyhow::Result<()> {
    let name = matches.get_one::<String>("name");
    let chosen: Vec<_> = PRESETS.iter().filter(|p| name.is_none_or(|n| n == p.name)).collect();
    if let (Some(name), true) = (name, chosen.is_empty()) {
        let names = PRESETS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        bail!("preset is {name:?}, expected one of {names}");
    }
    if matches.get_flag("json") {
        let list = chosen.iter().map(|p| {
            let values: serde_json::Map<_, _> = p.values.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            json!({ "name": p.name, "kind": kind(p.kind), "summary": p.summary, "about": words(p.about), "values": values })
        });
        return output::json(&list.collect::<Vec<_>>());
    }
    for preset in chosen {
        output::say(format!("{} ({}): {}", preset.name, kind(preset.kind), preset.summary))?;
        if name.is_some() {
            output::say(format!("\n{}", words(preset.about)))?;
            for (key, value) in preset.values {
                output::say(format!("  {key} = {value}"))?;
            }
        }
    }
    Ok(())
}

const fn kind(kind: PresetKind) -> &'static str {
    match kind {
        PresetKind::Runs => "to run",
        PresetKind::Historic => "historic",
        PresetKind::Card => "information only",
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
