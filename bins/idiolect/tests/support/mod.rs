//! `idiolect mutate` as a process in a folder of its own.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    // The configuration of whoever runs the tests is none of ours.
    command.env("XDG_CONFIG_HOME", folder).arg("mutate").args(args).current_dir(folder);
    command
}

fn mutate(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("it runs")
}

#[track_caller]
pub(crate) fn says(folder: &Path, args: &[&str]) -> String {
    let output = mutate(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
pub(crate) fn gives(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&says(folder, args)).expect("JSON")
}

#[track_caller]
pub(crate) fn refuses(folder: &Path, args: &[&str], code: i32, expected: &str) {
    let output = mutate(folder, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(expected), "{args:?}: {said}");
}
