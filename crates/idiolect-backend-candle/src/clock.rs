//! What time it is, for whatever is decided by it.

use std::time::Instant;

/// Tells the time: the system's, or in tests that of a script, which no other load of the machine can change.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    #[cfg(test)]
    Scripted(std::sync::Arc<Scripted>),
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(test)]
            Self::Scripted(clock) => clock.now(),
        }
    }
}

/// A time that passes when it is told to.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Scripted {
    began: Instant,
    micros: std::sync::atomic::AtomicU64,
}

#[cfg(test)]
impl Default for Scripted {
    fn default() -> Self {
        Self { began: Instant::now(), micros: std::sync::atomic::AtomicU64::new(0) }
    }
}

#[cfg(test)]
impl Scripted {
    pub(crate) fn now(&self) -> Instant {
        let micros = self.micros.load(std::sync::atomic::Ordering::SeqCst);
        self.began + std::time::Duration::from_micros(micros)
    }

    pub(crate) fn advance(&self, micros: u64) {
        self.micros.fetch_add(micros, std::sync::atomic::Ordering::SeqCst);
    }
}
