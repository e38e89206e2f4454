//! What a caller hears while a model is fetched.

use std::path::Path;

/// Receives what happens during [`Resolver::resolve`](crate::Resolver::resolve).
///
/// Called from the task that resolves, and from a blocking thread while archives are unpacked; it must not block for long.
pub trait Progress: Send + Sync {
    /// Takes note of one event.
    fn event(&self, event: Event<'_>);
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another process is fetching the same model; waiting for it.
    Waiting {
        /// The model's name.
        model: &'a str,
        /// The lock file that is held.
        lock: &'a Path,
    },
    /// A source is asked.
    Trying {
        /// The model's name.
        model: &'a str,
        /// The source, printable.
        source: &'a str,
    },
    /// A source did not work out; the next one follows, if there is one.
    Failed {
        /// The source, printable.
        source: &'a str,
        /// Why, in one line without credentials.
        reason: &'a str,
    },
    /// Bytes start to arrive.
    Started {
        /// What is being transferred (a file or wheel name).
        file: &'a str,
        /// Its size in bytes, where the server says.
        total: Option<u64>,
        /// Bytes that an earlier, interrupted attempt already brought.
        resumed_from: u64,
    },
    /// Bytes arrived. Sent for every chunk: draw at your own pace.
    Advanced {
        /// What is being transferred.
        file: &'a str,
        /// Bytes present so far, resumed ones included.
        done: u64,
        /// The size in bytes, where known.
        total: Option<u64>,
    },
    /// All bytes of a transfer are here.
    Finished {
        /// What was transferred.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
    /// An archive member is being unpacked.
    Unpacking {
        /// The member.
        file: &'a str,
    },
    /// A file's hash is being computed.
    Verifying {
        /// The file.
        file: &'a str,
    },
    /// A cached file does not have its recorded hash and will be fetched again.
    Corrupt {
        /// The file.
        file: &'a Path,
    },
    /// The model is ready.
    Ready {
        /// The model's name.
        model: &'a str,
        /// Whether it was in the cache.
        cached: bool,
    },
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _event: Event<'_>) {}
}

impl<F: Fn(Event<'_>) + Send + Sync> Progress for F {
    fn event(&self, event: Event<'_>) {
        self(event);
    }
}
