//! What is shown while models are fetched: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use idiolect_models::{Event, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows the progress of fetches on standard error.
pub struct FetchProgress {
    bars: Option<MultiProgress>,
    open: Mutex<HashMap<String, ProgressBar>>,
}

impl fmt::Debug for FetchProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchProgress").finish_non_exhaustive()
    }
}

impl Default for FetchProgress {
    /// Bars where standard error is a terminal, log lines elsewhere.
    fn default() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, open: Mutex::default() }
    }
}

impl FetchProgress {
    fn note(&self, line: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => tracing::info!("{line}"),
        }
    }

    fn with_bar(&self, file: &str, total: Option<u64>, change: impl FnOnce(&ProgressBar)) {
        let Some(bars) = &self.bars else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = open.entry(file.to_owned()).or_insert_with(|| bars.add(bar(file, total)));
        change(bar);
    }

    fn close(&self, file: &str) {
        if let Some(bar) = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(file) {
            bar.finish_and_clear();
        }
    }
}

fn bar(file: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{msg} {binary_bytes} {binary_bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_message(file.to_owned())
}

impl Progress for FetchProgress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Waiting { model, .. } => self.note(&format!("waiting for another process that is fetching {model}")),
            Event::Trying { model, source } => self.note(&format!("fetching {model} from {source}")),
            Event::Failed { source, reason } => self.note(&format!("{source} did not work out: {reason}")),
            Event::Started { file, total, resumed_from } => {
                if resumed_from > 0 {
                    self.note(&format!("going on with {file} after {resumed_from} bytes"));
                }
                self.with_bar(file, total, |bar| bar.set_position(resumed_from));
            }
            Event::Advanced { file, done, total } => self.with_bar(file, total, |bar| bar.set_position(done)),
            Event::Finished { file, bytes } => {
                self.close(file);
                self.note(&format!("fetched {file} ({:.1} MB)", mb(bytes)));
            }
            Event::Unpacking { file } => self.note(&format!("unpacking {file}")),
            Event::Corrupt { file } => self.note(&format!("{} is damaged and will be fetched again", file.display())),
            _ => {}
        }
    }
}

/// How much of a long piece of work is done: a bar where standard error is a terminal, nothing elsewhere.
#[derive(Debug)]
pub struct Counter(Option<ProgressBar>);

impl Counter {
    /// Begins; `what` stands before the bar.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_message(what));
        if let (Some(bar), Ok(style)) = (&bar, ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}")) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// Shows that so many of all are done.
    pub fn at(&self, done: usize, all: usize) {
        if let Some(bar) = &self.0 {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    }

    /// Takes the bar away.
    pub fn close(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
