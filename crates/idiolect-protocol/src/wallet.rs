//! Key files of Bittensor wallets: reading plain hotkeys and public keys, writing new hotkeys.
//!
//! ```
//! use idiolect_protocol::wallet::{self, WalletPath};
//!
//! # let folder = std::env::temp_dir().join(format!("idiolect-doc-{}", std::process::id()));
//! let wallet = WalletPath { name: "miner".into(), hotkey: "default".into(), path: folder.clone() };
//! let made = wallet::load_or_create_hotkey(&wallet.hotkey_file()?)?;
//! let read = wallet::load_hotkey(&wallet.hotkey_file()?)?;
//! assert_eq!(made.hotkey(), read.hotkey());
//! # std::fs::remove_dir_all(folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bip39::Mnemonic;
use serde::Deserialize;
use serde_json::json;

use crate::keys::{self, parse_hex};
use crate::{Hotkey, Keypair};

/// Larger files are no key files.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where a wallet's files lie: `PATH/NAME/hotkeys/HOTKEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalletPath {
    /// The wallet's name.
    pub name: String,
    /// The hotkey's name.
    pub hotkey: String,
    /// The folder of wallets; a leading `~` stands for the home folder.
    pub path: PathBuf,
}

impl WalletPath {
    /// The folder that Bittensor's own tools use.
    pub const DEFAULT_PATH: &str = "~/.bittensor/wallets";

    /// Names a wallet in the usual folder.
    pub fn new(name: impl Into<String>, hotkey: impl Into<String>) -> Self {
        Self { name: name.into(), hotkey: hotkey.into(), path: Self::DEFAULT_PATH.into() }
    }

    /// Returns the file of the hotkey.
    ///
    /// # Errors
    /// [`WalletError::Name`], [`WalletError::NoHome`].
    pub fn hotkey_file(&self) -> Result<PathBuf, WalletError> {
        Ok(self.wallet_folder()?.join("hotkeys").join(checked_name("hotkey", &self.hotkey)?))
    }

    /// Returns the file of the coldkey's public part.
    ///
    /// # Errors
    /// As [`hotkey_file`](Self::hotkey_file).
    pub fn coldkeypub_file(&self) -> Result<PathBuf, WalletError> {
        Ok(self.wallet_folder()?.join("coldkeypub.txt"))
    }

    fn wallet_folder(&self) -> Result<PathBuf, WalletError> {
        let name = checked_name("wallet", &self.name)?;
        let folder = match self.path.strip_prefix("~") {
            Ok(rest) => std::env::home_dir().ok_or(WalletError::NoHome)?.join(rest),
            Err(_) => self.path.clone(),
        };
        Ok(folder.join(name))
    }
}

fn checked_name<'a>(what: &'static str, name: &'a str) -> Result<&'a str, WalletError> {
    let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if is_plain { Ok(name) } else { Err(WalletError::Name { what, name: name.into() }) }
}

/// Why a key file cannot be used. Says where and why, never what is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// A wallet or hotkey name that is no file name.
    #[error("{what} name {name:?} is not a file name")]
    Name {
        /// Which name: `wallet` or `hotkey`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The wallet folder starts with `~`, and there is no home folder.
    #[error("no home folder is known: give the wallet path in full")]
    NoHome,
    /// The file cannot be read.
    #[error("cannot read key file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write key file {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A new key would replace an old one.
    #[error("key file {} is already there and is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is encrypted with a password.
    #[error(
        "key file {} is encrypted ({scheme}): a miner needs a plain hotkey; \
         write one with `btcli wallet regen-hotkey` and without a password", path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The name of the encryption.
        scheme: &'static str,
    },
    /// The file has a public key only.
    #[error("key file {} holds a public key only: the secret half is needed to sign", path.display())]
    PublicOnly {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("bad key file {}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a plain hotkey file, old or new.
///
/// The seed counts first, then the mnemonic, then the private key. What the file says of its public key must fit.
///
/// # Errors
/// [`WalletError`].
pub fn load_hotkey(path: &Path) -> Result<Keypair, WalletError> {
    parse_hotkey(&read(path)?).map_err(|problem| problem.at(path))
}

/// Reads a public key: `coldkeypub.txt`, `HOTKEYpub.txt`, or the public part of a hotkey file.
///
/// # Errors
/// [`WalletError`].
pub fn load_public(path: &Path) -> Result<Hotkey, WalletError> {
    parse_public(&read(path)?).map_err(|problem| problem.at(path))
}

/// Makes a new key and writes it to `path` as a plain hotkey file for its owner alone, complete or not at all.
///
/// # Errors
/// [`WalletError::Exists`], [`WalletError::Write`].
pub fn create_hotkey(path: &Path) -> Result<Keypair, WalletError> {
    let (pair, text) = new_hotkey_file();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => WalletError::Exists { path: path.into() },
        _ => WalletError::Write { path: path.into(), source },
    };
    write_new(path, text.as_bytes()).map_err(failed)?;
    Ok(pair)
}

/// Reads the hotkey file at `path`, or makes it where there is none.
///
/// # Errors
/// [`WalletError`]; a bad file is never replaced.
pub fn load_or_create_hotkey(path: &Path) -> Result<Keypair, WalletError> {
    match load_hotkey(path) {
        Err(WalletError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    match create_hotkey(path) {
        // Another process was faster.
        Err(WalletError::Exists { .. }) => load_hotkey(path),
        other => other,
    }
}

/// What is wrong with a key file's text.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    Encrypted(&'static str),
    PublicOnly,
    Malformed(String),
}

impl Problem {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    fn at(self, path: &Path) -> WalletError {
        let path = path.to_owned();
        match self {
            Self::Encrypted(scheme) => WalletError::Encrypted { path, scheme },
            Self::PublicOnly => WalletError::PublicOnly { path },
            Self::Malformed(reason) => WalletError::Malformed { path, reason },
        }
    }
}

/// A key file as bittensor writes it; old versions leave out the last two fields and write `null` for what is missing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    account_id: Option<String>,
    public_key: Option<String>,
    ss58_address: Option<String>,
    secret_phrase: Option<String>,
    secret_seed: Option<String>,
    private_key: Option<String>,
    crypto_type: Option<u8>,
}

impl KeyFile {
    fn parse(text: &str) -> Result<Self, Problem> {
        // The message of `serde_json` may repeat parts of the text, so only the place is told.
        let file: Self = serde_json::from_str(text).map_err(|err| {
            let (line, column) = (err.line(), err.column());
            Problem::malformed(format!("expected a JSON object with key fields (line {line}, column {column})"))
        })?;
        match file.crypto_type {
            None | Some(1) => Ok(file),
            Some(0) => Err(Problem::malformed("it holds an ed25519 key, only sr25519 is supported")),
            Some(other) => {
                Err(Problem::malformed(format!("unknown cryptoType {other}, only 1 (sr25519) is supported")))
            }
        }
    }

    /// Returns the public key, which all fields that name it must agree on.
    fn public(&self) -> Result<Option<Hotkey>, Problem> {
        let address = self.ss58_address.as_deref().map(|address| {
            Hotkey::from_ss58(address).map_err(|err| Problem::malformed(format!("ss58Address is {err}")))
        });
        let hexes = [("publicKey", &self.public_key), ("accountId", &self.account_id)].map(|(name, text)| {
            let text = text.as_deref()?;
            let expected = || Problem::malformed(format!("{name} is not 64 hexadecimal digits"));
            Some(hex_bytes(text).map(Hotkey::from_bytes).ok_or_else(expected))
        });
        let mut keys = address.into_iter().chain(hexes.into_iter().flatten()).collect::<Result<Vec<_>, _>>()?;
        keys.dedup();
        match keys.as_slice() {
            [] => Ok(None),
            [key] => Ok(Some(*key)),
            _ => Err(Problem::malformed("publicKey, accountId and ss58Address name different keys")),
        }
    }
}

fn parse_hotkey(text: &str) -> Result<Keypair, Problem> {
    let text = plain(text)?;
    if text.starts_with("0x") {
        return Err(parse_public(text).map_or_else(|problem| problem, |_| Problem::PublicOnly));
    }
    let file = KeyFile::parse(text)?;
    let public = file.public()?;
    let pair = if let Some(seed) = &file.secret_seed {
        let seed = hex_bytes(seed).ok_or_else(|| Problem::malformed("secretSeed is not 64 hexadecimal digits"))?;
        Keypair::from_seed(&seed)
    } else if let Some(words) = &file.secret_phrase {
        Keypair::from_mnemonic(words, "")
    } else if let Some(private) = &file.private_key {
        let bytes = hex_bytes(private).ok_or_else(|| Problem::malformed("privateKey is not 128 hexadecimal digits"))?;
        let public = public.ok_or_else(|| Problem::malformed("privateKey comes without a public key"))?;
        Keypair::from_private(&bytes, &public)
    } else {
        return Err(if public.is_some() { Problem::PublicOnly } else { Problem::malformed("it holds no key") });
    };
    let pair = pair.map_err(|err| Problem::malformed(err.to_string()))?;
    match public {
        Some(public) if public != pair.hotkey() => {
            Err(Problem::malformed("its secret and its public key do not belong together"))
        }
        _ => Ok(pair),
    }
}

fn parse_public(text: &str) -> Result<Hotkey, Problem> {
    let text = plain(text)?;
    if text.starts_with("0x") {
        let bytes = parse_hex(text).ok_or_else(|| Problem::malformed("not 0x and 64 hexadecimal digits"))?;
        return Ok(Hotkey::from_bytes(bytes));
    }
    KeyFile::parse(text)?.public()?.ok_or_else(|| Problem::malformed("it holds no public key"))
}

/// Refuses encrypted texts.
fn plain(text: &str) -> Result<&str, Problem> {
    let text = text.trim();
    let encrypted = [("$NACL", "NaCl"), ("$ANSIBLE_VAULT", "Ansible vault"), ("gAAAAA", "Fernet")];
    match encrypted.into_iter().find(|(prefix, _)| text.starts_with(prefix)) {
        Some((_, scheme)) => Err(Problem::Encrypted(scheme)),
        None => Ok(text),
    }
}

/// Reads hexadecimal digits with or without `0x`.
fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).ok()?;
    Some(bytes)
}

fn read(path: &Path) -> Result<String, WalletError> {
    let failed = |source| WalletError::Read { path: path.into(), source };
    // A pipe would be waited for without end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Problem::malformed("it is no regular file").at(path));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Problem::malformed("it is larger than 64 KiB").at(path));
    }
    // Only encrypted files hold bytes that are no text, and only their beginning counts.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A new key and the text of its file, in the form that bittensor reads.
fn new_hotkey_file() -> (Keypair, String) {
    loop {
        let entropy: [u8; 16] = rand::random();
        // 16 bytes of entropy always make twelve words, and those always make a key.
        let Ok(words) = Mnemonic::from_entropy(&entropy).map(|words| words.to_string()) else { continue };
        let Ok(seed) = keys::mnemonic_seed(&words, "") else { continue };
        let Ok(pair) = Keypair::from_seed(&seed) else { continue };
        let public = format!("0x{}", hex::encode(pair.hotkey().as_bytes()));
        let file = json!({
            "accountId": public,
            "publicKey": public,
            "privateKey": format!("0x{}", hex::encode(pair.private_bytes())),
            "secretPhrase": words,
            "secretSeed": format!("0x{}", hex::encode(seed)),
            "ss58Address": pair.hotkey(),
            "cryptoType": 1,
        });
        return (pair, file.to_string());
    }
}

/// Writes a file that is complete as soon as it has its name, and fails where the name is taken.
fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_folders(folder)?;
    let temporary = folder.join(format!(".hotkey-{}-{:016x}.tmp", std::process::id(), rand::random::<u64>()));
    let written = write_private(&temporary, text).and_then(|()| match fs::hard_link(&temporary, path) {
        // Some file systems know no links: then the name comes before the contents.
        Err(err) if err.kind() == io::ErrorKind::Unsupported => write_private(path, text),
        other => other,
    });
    // What is left behind here is a file that nobody reads.
    let _ = fs::remove_file(&temporary);
    written
}

fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn create_private_folders(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testdata;

    /// What is wrong with a text, in words.
    fn reason(text: &str) -> String {
        match parse_hotkey(text).unwrap_err() {
            Problem::Malformed(reason) => reason,
            other => format!("{other:?}"),
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&pipe, dir.path()] {
            let error = load_hotkey(path).unwrap_err().to_string();
            assert!(error.contains("it is no regular file"), "{error}");
        }
    }

    #[test]
    fn recorded_files_of_old_and_new_versions_are_read() {
        let vectors = testdata::vectors("wallet.json");
        let expected: Hotkey = vectors["expected"]["ss58"].as_str().unwrap().parse().unwrap();
        assert_eq!(hex::encode(expected.as_bytes()), vectors["expected"]["public_key"]);
        for version in ["old", "new"] {
            let texts = vectors[version].as_object().unwrap();
            let hotkey = texts["hotkey_file"].as_str().unwrap();
            assert_eq!(parse_hotkey(hotkey).unwrap().hotkey(), expected);
            for (name, text) in texts.iter().filter(|(name, _)| name.ends_with("_file")) {
                assert_eq!(parse_public(text.as_str().unwrap()), Ok(expected), "{version} {name}");
                if name != "hotkey_file" {
                    assert_eq!(parse_hotkey(text.as_str().unwrap()).unwrap_err(), Problem::PublicOnly, "{name}");
                }
            }
        }
    }

    #[test]
    fn each_secret_alone_is_enough() {
        let vectors = testdata::vectors("wallet.json");
        let full: Value = serde_json::from_str(vectors["new"]["hotkey_file"].as_str().unwrap()).unwrap();
        let expected: Hotkey = full["ss58Address"].as_str().unwrap().parse().unwrap();
        for kept in ["secretSeed", "secretPhrase", "privateKey"] {
            let mut file = full.clone();
            for other in ["secretSeed", "secretPhrase", "privateKey"].iter().filter(|other| **other != kept) {
                file[other] = Value::Null;
            }
            assert_eq!(parse_hotkey(&file.to_string()).unwrap().hotkey(), expected, "{kept}");
        }
    }

    #[test]
    fn encrypted_files_are_named_as_such() {
        let vectors = testdata::vectors("wallet.json");
        let bytes = hex::decode(vectors["nacl"]["file_hex"].as_str().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coldkey");
        fs::write(&path, bytes).unwrap();
        let message = load_hotkey(&path).unwrap_err().to_string();
        assert!(message.contains("encrypted (NaCl)") && message.contains("regen-hotkey"), "{message}");
        assert_eq!(parse_hotkey("$ANSIBLE_VAULT;1.1").unwrap_err(), Problem::Encrypted("Ansible vault"));
        assert_eq!(parse_hotkey("gAAAAABk").unwrap_err(), Problem::Encrypted("Fernet"));
    }

    #[test]
    fn bad_files_are_explained_without_their_contents() {
        let alice = Keypair::from_uri("//Alice").unwrap().hotkey();
        let seed = "0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e";
        let check = |text: &str, expected: &str| {
            let reason = reason(text);
            assert!(reason.contains(expected), "{text}: {reason}");
            assert!(!reason.contains("fac7959d") && !reason.contains("bottom"), "{reason}");
        };
        check("", "expected a JSON object");
        check("{\"secretSeed\": ", "line 1");
        check(&format!("\"{seed}\""), "expected a JSON object");
        check(&format!("{{\"cryptoType\": \"{seed}\"}}"), "expected a JSON object");
        check("{}", "no key");
        check("0xfac7959d", "64 hexadecimal");
        check("{\"secretSeed\": \"0xfac7959d\"}", "secretSeed");
        check("{\"secretPhrase\": \"bottom bottom\"}", "mnemonic");
        check("{\"privateKey\": \"0xfac7959d\"}", "privateKey");
        check(&format!("{{\"privateKey\": \"0x{}\"}}", "00".repeat(64)), "without a public key");
        check(&format!("{{\"privateKey\": \"0x{}\", \"ss58Address\": \"{alice}\"}}", "00".repeat(64)), "private key");
        check(&format!("{{\"secretSeed\": \"{seed}\", \"ss58Address\": \"{alice}\"}}"), "do not belong together");
        check(&format!("{{\"secretSeed\": \"{seed}\", \"ss58Address\": \"5Grw\"}}"), "ss58Address");
        check(&format!("{{\"publicKey\": \"{seed}\", \"ss58Address\": \"{alice}\"}}"), "different keys");
        check(&format!("{{\"secretSeed\": \"{seed}\", \"cryptoType\": 0}}"), "ed25519");
        check(&format!("{{\"secretSeed\": \"{seed}\", \"cryptoType\": 9}}"), "cryptoType 9");
    }

    #[test]
    fn missing_and_large_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let message = load_hotkey(&missing).unwrap_err().to_string();
        assert!(message.starts_with("cannot read key file") && message.contains("missing"), "{message}");
        let large = folder.path().join("large");
        fs::write(&large, vec![b' '; 70_000]).unwrap();
        assert!(load_hotkey(&large).unwrap_err().to_string().contains("64 KiB"));
        assert!(load_hotkey(folder.path()).is_err());
    }

    #[test]
    fn a_new_file_is_private_readable_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let wallet = WalletPath { name: "w".into(), hotkey: "h".into(), path: folder.path().into() };
        let path = wallet.hotkey_file().unwrap();
        assert_eq!(path, folder.path().join("w/hotkeys/h"));
        let made = create_hotkey(&path).unwrap();
        assert_eq!(load_hotkey(&path).unwrap().hotkey(), made.hotkey());
        let before = fs::read(&path).unwrap();
        assert!(matches!(create_hotkey(&path), Err(WalletError::Exists { .. })));
        assert_eq!(load_or_create_hotkey(&path).unwrap().hotkey(), made.hotkey());
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_bad_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        fs::write(&path, "{}").unwrap();
        assert!(load_or_create_hotkey(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    }

    #[test]
    fn names_are_file_names() {
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0b"] {
            assert!(WalletPath::new(bad, "h").hotkey_file().is_err(), "{bad:?}");
            assert!(WalletPath::new("w", bad).hotkey_file().is_err(), "{bad:?}");
        }
        let wallet = WalletPath::new("w", "h");
        let home = std::env::home_dir().unwrap();
        assert_eq!(wallet.hotkey_file().unwrap(), home.join(".bittensor/wallets/w/hotkeys/h"));
        assert_eq!(wallet.coldkeypub_file().unwrap(), home.join(".bittensor/wallets/w/coldkeypub.txt"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = parse_hotkey(&text);
            let _ = parse_public(&text);
        }
    }
}
