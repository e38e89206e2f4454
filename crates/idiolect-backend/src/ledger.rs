//! Where a [`SpendingCap`](crate::SpendingCap) remembers what was spent.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::Error;

const DAY: u64 = 86_400;

/// A day in UTC, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UtcDay(pub u64);

impl UtcDay {
    /// Returns the day of this moment; moments before 1970 count as its first day.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        Self(since_epoch(time).as_secs() / DAY)
    }

    /// Returns how long the day of this moment still lasts.
    #[must_use]
    pub fn left(time: SystemTime) -> Duration {
        let since = since_epoch(time);
        Duration::from_secs((since.as_secs() / DAY + 1) * DAY).saturating_sub(since)
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// What a ledger says to a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// It is on record.
    Accepted {
        /// Micro-dollars of the day with it.
        spent: u64,
    },
    /// It would have gone beyond the cap, and was not recorded.
    Refused {
        /// Micro-dollars of the day so far.
        spent: u64,
    },
}

/// A record of micro-dollars spent in a day.
///
/// # Contract
/// Each operation is atomic, also against other holders of the same record, and durable when it returns. One day is
/// enough: a later day starts at 0, and when the clock goes back the later day goes on.
#[async_trait]
pub trait SpendLedger: Debug + Send + Sync + 'static {
    /// Adds `amount` to the day, unless the sum would be above `cap`.
    async fn charge(&self, day: UtcDay, amount: u64, cap: u64) -> Result<Charge, Error>;

    /// Replaces an earlier charge of `charged` by `actual`. Does nothing when its day is over.
    async fn settle(&self, day: UtcDay, charged: u64, actual: u64) -> Result<(), Error>;

    /// Returns what was spent in the day.
    async fn spent(&self, day: UtcDay) -> Result<u64, Error>;
}

/// The record itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    utc_day: UtcDay,
    spent_microdollars: u64,
}

impl Record {
    /// Moves on to a later day; an earlier one means that the clock went back.
    fn at(self, day: UtcDay) -> Self {
        if day > self.utc_day { Self { utc_day: day, spent_microdollars: 0 } } else { self }
    }

    fn charge(&mut self, amount: u64, cap: u64) -> Charge {
        match self.spent_microdollars.checked_add(amount).filter(|sum| *sum <= cap) {
            Some(spent) => {
                self.spent_microdollars = spent;
                Charge::Accepted { spent }
            }
            None => Charge::Refused { spent: self.spent_microdollars },
        }
    }

    fn settle(&mut self, day: UtcDay, charged: u64, actual: u64) {
        if day == self.utc_day {
            self.spent_microdollars = self.spent_microdollars.saturating_sub(charged).saturating_add(actual);
        }
    }
}

/// A ledger that a restart forgets.
#[derive(Debug, Default)]
pub struct MemoryLedger(Mutex<Record>);

impl MemoryLedger {
    fn with<T>(&self, day: UtcDay, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *record = record.at(day);
        change(&mut record)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SpendLedger for MemoryLedger {
    async fn charge(&self, day: UtcDay, amount: u64, cap: u64) -> Result<Charge, Error> {
        Ok(self.with(day, |record| record.charge(amount, cap)))
    }

    async fn settle(&self, day: UtcDay, charged: u64, actual: u64) -> Result<(), Error> {
        self.with(day, |record| record.settle(day, charged, actual));
        Ok(())
    }

    async fn spent(&self, day: UtcDay) -> Result<u64, Error> {
        Ok(self.with(day, |record| record.spent_microdollars))
    }
}

/// A ledger in a small JSON file, which several processes may share.
///
/// Each change takes a lock (on a file of the same name with `.lock` added), writes a new file beside the old one, and
/// renames it into place. A file that cannot be read is an error and never a fresh start: remove it by hand to begin
/// the day anew.
#[derive(Clone, Debug)]
pub struct FileLedger {
    path: PathBuf,
}

impl FileLedger {
    /// Keeps the record in this file; it and its folders are made at the first charge.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    async fn with<T: Send + 'static>(
        &self,
        day: UtcDay,
        change: impl FnOnce(&mut Record) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let path = self.path.clone();
        let shown = path.display().to_string();
        let result = tokio::task::spawn_blocking(move || update(&path, day, change)).await;
        let context = || format!("spending ledger {shown} cannot be used");
        result.map_err(|panic| Error::internal(context(), panic))?.map_err(|e| Error::internal(context(), e))
    }
}

fn update<T>(path: &Path, day: UtcDay, change: impl FnOnce(&mut Record) -> T) -> io::Result<T> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(beside(path, "lock"))?;
    lock.lock()?;
    let stored = read(path)?;
    let mut record = stored.at(day);
    let result = change(&mut record);
    if record != stored {
        write(path, &record)?;
    }
    Ok(result)
}

fn read(path: &Path) -> io::Result<Record> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let fresh = beside(path, "new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_data()?;
    fs::rename(fresh, path)?;
    // The new name must be on disk, too, or a power cut brings the old record back.
    #[cfg(unix)]
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SpendLedger for FileLedger {
    async fn charge(&self, day: UtcDay, amount: u64, cap: u64) -> Result<Charge, Error> {
        self.with(day, move |record| record.charge(amount, cap)).await
    }

    async fn settle(&self, day: UtcDay, charged: u64, actual: u64) -> Result<(), Error> {
        self.with(day, move |record| record.settle(day, charged, actual)).await
    }

    async fn spent(&self, day: UtcDay) -> Result<u64, Error> {
        self.with(day, |record| record.spent_microdollars).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn days_begin_at_midnight_utc() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        assert_eq!((UtcDay::of(at(DAY - 1)), UtcDay::of(at(DAY))), (UtcDay(0), UtcDay(1)));
        assert_eq!(UtcDay::left(at(DAY - 60)), Duration::from_secs(60));
        assert_eq!(UtcDay::of(SystemTime::UNIX_EPOCH - Duration::from_secs(5)), UtcDay(0));
    }

    #[tokio::test]
    async fn both_ledgers_keep_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let file = FileLedger::new(dir.path().join("deep/spent.json"));
        let ledgers: [Arc<dyn SpendLedger>; 2] = [Arc::new(MemoryLedger::default()), Arc::new(file)];
        for ledger in ledgers {
            let day = UtcDay(20_000);
            assert_eq!(ledger.charge(day, 60, 100).await.unwrap(), Charge::Accepted { spent: 60 });
            assert_eq!(ledger.charge(day, 41, 100).await.unwrap(), Charge::Refused { spent: 60 });
            ledger.settle(day, 60, 10).await.unwrap();
            assert_eq!(ledger.spent(day).await.unwrap(), 10);
            assert_eq!(ledger.charge(day, u64::MAX, u64::MAX).await.unwrap(), Charge::Refused { spent: 10 });
            assert_eq!(ledger.spent(UtcDay(20_001)).await.unwrap(), 0);
            ledger.settle(day, 10, 500).await.unwrap();
            assert_eq!(ledger.spent(UtcDay(20_001)).await.unwrap(), 0);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn holders_of_one_file_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spent.json");
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let ledger = FileLedger::new(&path);
                tokio::spawn(async move {
                    for _ in 0..5 {
                        ledger.charge(UtcDay(1), 3, 1000).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(FileLedger::new(&path).spent(UtcDay(1)).await.unwrap(), 120);
    }

    #[tokio::test]
    async fn a_damaged_file_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spent.json");
        fs::write(&path, "{\"utc_day\": 3, \"spent_micro").unwrap();
        let error = FileLedger::new(&path).charge(UtcDay(3), 1, 10).await.unwrap_err();
        assert!(error.to_string().contains("spent.json cannot be used"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"utc_day\": 3, \"spent_micro");
    }

    proptest::proptest! {
        #[test]
        fn what_is_accepted_never_exceeds_the_cap(
            cap in 0_u64..10_000,
            steps in proptest::collection::vec((0_u64..3, 0_u64..3_000, 0_u64..100), 0..60),
        ) {
            let mut record = Record::default();
            let mut open = Vec::new();
            for (days_on, amount, percent) in steps {
                let day = UtcDay(record.utc_day.0 + days_on / 2);
                record = record.at(day);
                if let Charge::Accepted { spent } = record.charge(amount, cap) {
                    proptest::prop_assert!(spent <= cap && spent == record.spent_microdollars);
                    open.push((day, amount));
                }
                // Costs at most its worst case, and so can never push the day beyond the cap.
                if percent % 2 == 0 && !open.is_empty() {
                    let (day, amount) = open.swap_remove(percent as usize % open.len());
                    record.settle(day, amount, amount * percent / 100);
                }
                proptest::prop_assert!(record.spent_microdollars <= cap);
            }
        }
    }
}
