//! The file that says that the axon answers.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use idiolect_protocol::Hotkey;
use serde_json::json;

/// Writes `{"axon": …, "hotkey": …, "models": […]}`; readers see nothing or all of it.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(path: &Path, axon: SocketAddr, hotkey: &Hotkey, models: &[String]) -> anyhow::Result<()> {
    let text = json!({ "axon": axon.to_string(), "hotkey": hotkey.to_string(), "models": models }).to_string();
    write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write the ready file {}", path.display()))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let mut file = std::fs::File::create(&temporary)?;
    let written =
        file.write_all(bytes).and_then(|()| file.write_all(b"\n")).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_one_object() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ready.json");
        let hotkey = Hotkey::from_bytes([7; 32]);
        write(&path, "127.0.0.1:8091".parse().expect("an address"), &hotkey, &["m".to_owned()]).expect("written");
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(read, json!({ "axon": "127.0.0.1:8091", "hotkey": hotkey.to_string(), "models": ["m"] }));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error =
            write(Path::new("/nonexistent/ready.json"), ([127, 0, 0, 1], 1).into(), &Hotkey::from_bytes([7; 32]), &[])
                .expect_err("no folder");
        assert_eq!(error.to_string(), "cannot write the ready file /nonexistent/ready.json");
    }
}
