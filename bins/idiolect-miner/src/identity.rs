//! The miner's own key.

use std::path::PathBuf;

use anyhow::Context as _;
use idiolect_protocol::Keypair;
use idiolect_protocol::wallet::{self, WalletPath};

use crate::config::Config;

/// The key, and where it comes from.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key.
    pub keypair: Keypair,
    /// The file that holds it; `None` for one that was given as a secret.
    pub file: Option<PathBuf>,
    /// It was made just now.
    pub is_new: bool,
}

/// Returns the file of the hotkey that the configuration names: the wallet's, otherwise the miner's own in its data directory.
///
/// # Errors
/// When wallet or hotkey name is no file name, or there is no home directory.
pub fn hotkey_file(config: &Config) -> anyhow::Result<PathBuf> {
    let section = &config.wallet;
    if section.name.is_none() && section.hotkey.is_none() {
        return Ok(config.data_dir.join("hotkey.json"));
    }
    let name = |given: &Option<String>| given.clone().unwrap_or_else(|| "default".to_owned());
    let mut wallet = WalletPath::new(name(&section.name), name(&section.hotkey));
    if let Some(path) = &section.path {
        wallet.path.clone_from(path);
    }
    Ok(wallet.hotkey_file()?)
}

/// Finds the key that the configuration names, without making one.
///
/// # Errors
/// When it cannot be read or is no plain hotkey.
pub fn find(config: &Config) -> anyhow::Result<Identity> {
    if let Some(uri) = &config.wallet.hotkey_uri {
        let keypair = Keypair::from_uri(uri).context("hotkey-uri")?;
        return Ok(Identity { keypair, file: None, is_new: false });
    }
    let file = hotkey_file(config)?;
    let keypair = wallet::load_hotkey(&file).with_context(|| hint(config))?;
    Ok(Identity { keypair, file: Some(file), is_new: false })
}

/// Finds the key, and makes the miner's own where no wallet is named and none was made yet.
///
/// # Errors
/// As [`find`], and when the new key cannot be written.
pub fn find_or_make(config: &Config) -> anyhow::Result<Identity> {
    let wallet = &config.wallet;
    if wallet.hotkey_uri.is_some() || wallet.name.is_some() || wallet.hotkey.is_some() {
        return find(config);
    }
    let file = hotkey_file(config)?;
    let is_new = !file.exists();
    let keypair = wallet::load_or_create_hotkey(&file)?;
    Ok(Identity { keypair, file: Some(file), is_new })
}

fn hint(config: &Config) -> &'static str {
    if config.wallet.name.is_some() || config.wallet.hotkey.is_some() {
        "the wallet's hotkey cannot be used; check --wallet.name, --wallet.hotkey and --wallet.path, or make one with idiolect wallet new"
    } else {
        "the miner has no key here; it makes one when it starts"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &std::path::Path) -> Config {
        Config { data_dir: dir.to_path_buf(), ..Config::default() }
    }

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(dir.path());
        assert!(find(&config).is_err());
        let first = find_or_make(&config).expect("made");
        let again = find_or_make(&config).expect("found");
        assert!(first.is_new && !again.is_new);
        assert_eq!(first.keypair.hotkey(), again.keypair.hotkey());
    }

    #[test]
    fn a_named_wallet_is_never_made() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = config(dir.path());
        config.wallet.name = Some("w".to_owned());
        config.wallet.path = Some(dir.path().to_path_buf());
        let error = format!("{:#}", find_or_make(&config).expect_err("no wallet"));
        assert!(error.contains("--wallet.name") && error.contains("w/hotkeys/default"), "{error}");
        let file = dir.path().join("w/hotkeys/default");
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        std::fs::write(&file, "this is no key").expect("written");
        let error = format!("{:#}", find_or_make(&config).expect_err("a bad file"));
        assert!(error.contains("bad key file") && !error.contains("this is no key"), "{error}");
    }

    #[test]
    fn a_secret_is_not_repeated_in_errors() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = config(dir.path());
        config.wallet.hotkey_uri = Some("twelve words that are none".to_owned());
        let error = format!("{:#}", find(&config).expect_err("no secret"));
        assert!(!error.contains("twelve"), "{error}");
        config.wallet.hotkey_uri = Some("//Alice".to_owned());
        let alice = find(&config).expect("Alice").keypair.hotkey().to_string();
        assert_eq!(alice, "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY");
    }
}
