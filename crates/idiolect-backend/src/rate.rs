//! Requests a minute, exactly.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// Admits at most so many requests in any sixty seconds. Remembers one instant for each of them.
#[derive(Debug)]
pub(crate) struct RateWindow {
    rpm: NonZeroU32,
    admitted: VecDeque<Instant>,
}

impl RateWindow {
    pub(crate) const fn new(rpm: NonZeroU32) -> Self {
        Self { rpm, admitted: VecDeque::new() }
    }

    pub(crate) const fn rpm(&self) -> NonZeroU32 {
        self.rpm
    }

    /// Returns how long until one more would be admitted; zero when it would be now.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        while self.admitted.front().is_some_and(|oldest| now.saturating_duration_since(*oldest) >= MINUTE) {
            self.admitted.pop_front();
        }
        if self.admitted.len() < self.rpm.get() as usize {
            return Duration::ZERO;
        }
        self.admitted.front().map_or(Duration::ZERO, |oldest| (*oldest + MINUTE).saturating_duration_since(now))
    }

    /// Counts one request, or says how long it would have to wait.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.wait(now) {
            Duration::ZERO => {
                self.admitted.push_back(now);
                Ok(())
            }
            wait => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn never_more_than_rpm_in_any_minute() {
        let mut window = RateWindow::new(NonZeroU32::new(3).unwrap());
        let mut admitted = Vec::new();
        for _ in 0..400 {
            let now = Instant::now();
            if window.admit(now).is_ok() {
                admitted.push(now);
            }
            tokio::time::advance(Duration::from_millis(700)).await;
        }
        assert!(admitted.windows(4).all(|w| w[3] - w[0] >= MINUTE));
        assert!(admitted.len() >= 12, "{}", admitted.len());
        assert!(window.admitted.len() <= 3);
    }
}
