//! `idiolect wallet`: plain hotkey files.

use clap::{ArgMatches, Command};
use idiolect_miner::cli;
use idiolect_miner::identity::{self, Identity};
use idiolect_protocol::wallet;
use serde_json::json;

use super::json_arg;
use crate::output;

pub(crate) fn command() -> Command {
    Command::new("wallet")
        .about("Make and show hotkeys; coldkeys are left to btcli")
        .subcommand_required(true)
        .subcommand(sub("new", "Make a hotkey file, never replacing one: --wallet.name NAME --wallet.hotkey HOTKEY"))
        .subcommand(sub("show", "Show the address of the hotkey that the miner would use, and where it lies"))
}

fn sub(name: &'static str, about: &'static str) -> Command {
    let wanted = |key: &str| key.starts_with("wallet.") || key == "data_dir";
    cli::key_args(Command::new(name).about(about).arg(json_arg()), wanted)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let loaded = super::load(matches)?;
    let config = &loaded.config;
    let identity = match name {
        "new" => {
            let path = identity::hotkey_file(config)?;
            let keypair = wallet::create_hotkey(&path)?;
            Identity { keypair, file: Some(path), is_new: true }
        }
        _ => identity::find(config)?,
    };
    let address = identity.keypair.hotkey().to_string();
    if matches.get_flag("json") {
        return output::json(&json!({ "hotkey": address, "file": identity.file, "new": identity.is_new }));
    }
    let place = identity.file.map_or_else(|| "given as a secret".to_owned(), |file| file.display().to_string());
    Ok(output::say(format!("{address}  {place}"))?)
}
