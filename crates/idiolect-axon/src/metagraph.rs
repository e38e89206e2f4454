//! Who is on the subnet: the snapshot file, and the view that policy looks at.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use idiolect_protocol::{Clock, Hotkey};
use serde::{Deserialize, Serialize};

use crate::metrics as meters;

/// The version of the snapshot format that this crate reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

/// One subnet at one block, as it stands in a snapshot file.
///
/// All figures are integers: stakes and emission in RAO (10^-9 TAO or alpha), incentive in 1/65535.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metagraph {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name of the network: `finney`, `test`, `local`, …
    pub network: String,
    /// Hash of the chain's first block, `0x` and 64 hex digits.
    pub genesis_hash: String,
    /// The subnet.
    pub netuid: u16,
    /// The block the figures are of.
    pub block: u64,
    /// When they were read, in seconds since 1970.
    pub taken_at: i64,
    /// Everybody registered.
    pub neurons: Vec<Neuron>,
}

/// One registered key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neuron {
    /// Its place on the subnet.
    pub uid: u16,
    /// The key itself.
    pub hotkey: Hotkey,
    /// Its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coldkey: Option<Hotkey>,
    /// Total stake in RAO: alpha plus weighted root stake. What rules on stake and priority go by.
    #[serde(default)]
    pub stake_rao: u64,
    /// The part staked on this subnet, in RAO of alpha.
    #[serde(default)]
    pub alpha_stake: u64,
    /// The part staked on the root network, in RAO.
    #[serde(default)]
    pub tao_stake: u64,
    /// Whether it may set weights.
    #[serde(default)]
    pub validator_permit: bool,
    /// Incentive in 1/65535.
    #[serde(default)]
    pub incentive_u16: u16,
    /// Emission of the last tempo in RAO of alpha.
    #[serde(default)]
    pub emission_rao: u64,
    /// Block of its last weights.
    #[serde(default)]
    pub last_update: u64,
    /// Where it serves, when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axon: Option<AxonInfo>,
}

impl Neuron {
    /// Says whether it announces an address that can be dialled.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.axon.is_some_and(|axon| !axon.ip.is_unspecified() && axon.port != 0)
    }
}

/// Where a neuron serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxonInfo {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol number as announced; every SDK sends 4.
    #[serde(default)]
    pub protocol: u8,
    /// Version of the software as announced.
    #[serde(default)]
    pub version: u32,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetagraphError {
    /// The file cannot be read.
    #[error("cannot read metagraph snapshot {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write metagraph snapshot {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The text is no snapshot.
    #[error("{}{message} (line {line}, column {column})", if field == "." { String::new() } else { format!("{field}: ") })]
    Parse {
        /// Path of the field, `neurons[3].stake_rao`; `.` for the whole.
        field: String,
        /// What is wrong with it.
        message: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The text is well formed and its content is not possible.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Metagraph {
    /// Reads a snapshot from JSON text.
    ///
    /// # Errors
    /// [`MetagraphError::Parse`] with line and field, [`MetagraphError::Invalid`] with the field.
    pub fn from_json(text: &str) -> Result<Self, MetagraphError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let snapshot: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            parse_error(field, error.inner())
        })?;
        json.end().map_err(|error| parse_error(".".to_owned(), &error))?;
        snapshot.check()?;
        Ok(snapshot)
    }

    /// Reads a snapshot file.
    ///
    /// # Errors
    /// [`MetagraphError::Read`], and as [`Metagraph::from_json`].
    pub fn load(path: &Path) -> Result<Self, MetagraphError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| MetagraphError::Read { path: path.to_owned(), source })?;
        Self::from_json(&text)
    }

    /// Writes the snapshot so that a reader sees the old file or the new one, never a part.
    ///
    /// # Errors
    /// [`MetagraphError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), MetagraphError> {
        let failed = |source| MetagraphError::Write { path: path.to_owned(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(io::Error::other(error)))?;
        text.push(b'\n');
        write_atomically(path, &text).map_err(failed)
    }

    fn check(&self) -> Result<(), MetagraphError> {
        let invalid = |field: &str, message: String| Err(MetagraphError::Invalid { field: field.to_owned(), message });
        if self.schema_version != SCHEMA_VERSION {
            return invalid(
                "schema_version",
                format!("{} is not known, expected {SCHEMA_VERSION}", self.schema_version),
            );
        }
        let digits = self.genesis_hash.strip_prefix("0x").unwrap_or_default();
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return invalid("genesis_hash", format!("{:?} is not 0x and 64 hex digits", self.genesis_hash));
        }
        if self.taken_at < 0 {
            return invalid("taken_at", format!("{} lies before 1970", self.taken_at));
        }
        let (mut uids, mut hotkeys) = (HashSet::new(), HashSet::new());
        for (index, neuron) in self.neurons.iter().enumerate() {
            if !uids.insert(neuron.uid) {
                return invalid(&format!("neurons[{index}].uid"), format!("uid {} appears twice", neuron.uid));
            }
            if !hotkeys.insert(neuron.hotkey) {
                return invalid(&format!("neurons[{index}].hotkey"), format!("{} appears twice", neuron.hotkey));
            }
        }
        Ok(())
    }
}

fn parse_error(field: String, error: &serde_json::Error) -> MetagraphError {
    let (line, column) = (error.line(), error.column());
    let mut message = error.to_string();
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    MetagraphError::Parse { field, message, line, column }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    let written = (|| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // Makes the new name survive a loss of power; not every system lets a folder be synced.
        let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// How far a view can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Young enough.
    Fresh,
    /// Older than it should be; still used.
    Degraded,
    /// Too old to decide by; what happens then is configured.
    Expired,
}

impl Stage {
    /// Returns the name used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Degraded => "degraded",
            Self::Expired => "expired",
        }
    }
}

/// The ages at which a view changes its [`Stage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageAges {
    /// From this age on it is degraded. Default 15 minutes.
    pub degraded: Duration,
    /// From this age on it is expired. Default 24 hours.
    pub expired: Duration,
}

impl Default for StageAges {
    fn default() -> Self {
        Self { degraded: Duration::from_secs(15 * 60), expired: Duration::from_secs(24 * 60 * 60) }
    }
}

impl StageAges {
    /// Returns the stage of a view of this age.
    #[must_use]
    pub fn stage(&self, age: Duration) -> Stage {
        if age >= self.expired {
            Stage::Expired
        } else if age >= self.degraded {
            Stage::Degraded
        } else {
            Stage::Fresh
        }
    }
}

/// What policy needs to know of the subnet. Cheap to ask: it is asked for every request.
pub trait MetagraphView: fmt::Debug + Send + Sync + 'static {
    /// Returns the neuron of a key, if it is registered.
    fn neuron(&self, hotkey: &Hotkey) -> Option<Neuron>;

    /// Returns how far the view can be trusted now.
    fn stage(&self) -> Stage;
}

/// A view over the last good snapshot. Clones share it.
#[derive(Clone)]
pub struct SnapshotView {
    current: Arc<RwLock<Arc<Indexed>>>,
    ages: StageAges,
    clock: Arc<dyn Clock>,
}

struct Indexed {
    snapshot: Metagraph,
    places: HashMap<Hotkey, usize>,
}

impl Indexed {
    fn new(snapshot: Metagraph) -> Arc<Self> {
        let places = snapshot.neurons.iter().enumerate().map(|(place, neuron)| (neuron.hotkey, place)).collect();
        Arc::new(Self { snapshot, places })
    }
}

impl fmt::Debug for SnapshotView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current();
        f.debug_struct("SnapshotView")
            .field("netuid", &current.snapshot.netuid)
            .field("block", &current.snapshot.block)
            .field("neurons", &current.snapshot.neurons.len())
            .finish_non_exhaustive()
    }
}

impl SnapshotView {
    /// Makes a view of a snapshot.
    pub fn new(snapshot: Metagraph, ages: StageAges, clock: Arc<dyn Clock>) -> Self {
        Self { current: Arc::new(RwLock::new(Indexed::new(snapshot))), ages, clock }
    }

    /// Puts a newer snapshot in place.
    pub fn replace(&self, snapshot: Metagraph) {
        let indexed = Indexed::new(snapshot);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = indexed;
    }

    /// Returns the netuid and block of the snapshot and how old it is.
    #[must_use]
    pub fn origin(&self) -> (u16, u64, Duration) {
        let current = self.current();
        (current.snapshot.netuid, current.snapshot.block, self.age(&current))
    }

    fn current(&self) -> Arc<Indexed> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn age(&self, current: &Indexed) -> Duration {
        let now = self.clock.now_ns() / 1_000_000_000;
        Duration::from_secs(u64::try_from(now - i128::from(current.snapshot.taken_at)).unwrap_or(0))
    }
}

impl MetagraphView for SnapshotView {
    fn neuron(&self, hotkey: &Hotkey) -> Option<Neuron> {
        let current = self.current();
        current.places.get(hotkey).map(|place| current.snapshot.neurons[*place])
    }

    fn stage(&self) -> Stage {
        self.ages.stage(self.age(&self.current()))
    }
}

/// A snapshot file that is read again when it changes.
#[derive(Debug)]
pub struct MetagraphFile {
    path: PathBuf,
    seen: Option<Mark>,
    view: SnapshotView,
}

/// What tells two versions of a file apart without reading it.
type Mark = (SystemTime, u64);

impl MetagraphFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// As [`Metagraph::load`].
    pub fn open(path: impl Into<PathBuf>, ages: StageAges, clock: Arc<dyn Clock>) -> Result<Self, MetagraphError> {
        let path = path.into();
        let seen = mark(&path);
        let snapshot = Metagraph::load(&path)?;
        Ok(Self { path, seen, view: SnapshotView::new(snapshot, ages, clock) })
    }

    /// Returns the view, which follows the file while [`watch`](Self::watch) runs.
    #[must_use]
    pub fn view(&self) -> SnapshotView {
        self.view.clone()
    }

    /// Reads the file again if it changed; returns whether it did. A bad file leaves the last good view in place.
    ///
    /// # Errors
    /// As [`Metagraph::load`]; the same bad file is reported once.
    pub fn refresh(&mut self) -> Result<bool, MetagraphError> {
        let now = mark(&self.path);
        if now == self.seen {
            return Ok(false);
        }
        self.seen = now;
        self.view.replace(Metagraph::load(&self.path)?);
        Ok(true)
    }

    /// Looks at the file every `interval`, for ever. Spawn it and abort it at the end.
    pub async fn watch(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let looked = tokio::task::spawn_blocking(move || {
                let outcome = self.refresh();
                (self, outcome)
            });
            let Ok((file, outcome)) = looked.await else { return };
            self = file;
            let (netuid, block, age) = self.view.origin();
            meters::metagraph_age(age, self.view.stage());
            match outcome {
                Ok(false) => {}
                Ok(true) => tracing::info!(netuid, block, "metagraph snapshot was read again"),
                Err(error) => {
                    meters::metagraph_reload_failed();
                    tracing::warn!(path = %self.path.display(), %error, block, "keeping the last good metagraph snapshot");
                }
            }
        }
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct AtSecond(AtomicI64);

    impl Clock for AtSecond {
        fn now_ns(&self) -> i128 {
            i128::from(self.0.load(Ordering::SeqCst)) * 1_000_000_000
        }
    }

    fn key(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    fn snapshot() -> Metagraph {
        Metagraph {
            schema_version: 1,
            network: "local".to_owned(),
            genesis_hash: format!("0x{}", "2f".repeat(32)),
            netuid: 11,
            block: 1234,
            taken_at: 1_700_000_000,
            neurons: vec![
                Neuron {
                    uid: 0,
                    hotkey: key(1),
                    coldkey: Some(key(9)),
                    stake_rao: 21_000_000_000_000_000,
                    alpha_stake: 5,
                    tao_stake: 6,
                    validator_permit: true,
                    incentive_u16: 0,
                    emission_rao: 7,
                    last_update: 8,
                    axon: Some(AxonInfo {
                        ip: "192.0.2.7".parse().unwrap(),
                        port: 8091,
                        protocol: 4,
                        version: 10_005_000,
                    }),
                },
                Neuron {
                    uid: 1,
                    hotkey: key(2),
                    coldkey: None,
                    stake_rao: 0,
                    alpha_stake: 0,
                    tao_stake: 0,
                    validator_permit: false,
                    incentive_u16: 49_151,
                    emission_rao: 0,
                    last_update: 0,
                    axon: None,
                },
            ],
        }
    }

    #[test]
    fn a_snapshot_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metagraph.json");
        snapshot().save(&path).unwrap();
        assert_eq!(Metagraph::load(&path).unwrap(), snapshot());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let text = format!(
            r#"{{
                "schema_version": 1, "network": "finney", "genesis_hash": "0x{}", "netuid": 1, "block": 7, "taken_at": 9,
                "neurons": [
                    {{"uid": 3, "hotkey": "{}", "coldkey": "{}", "stake_rao": 1, "alpha_stake": 2, "tao_stake": 3,
                      "validator_permit": true, "incentive_u16": 4, "emission_rao": 5, "last_update": 6,
                      "axon": {{"ip": "192.0.2.1", "port": 8091}}}},
                    {{"uid": 4, "hotkey": "{}", "axon": null}}
                ]
            }}"#,
            "2f".repeat(32),
            key(1),
            key(2),
            key(3),
        );
        let read = Metagraph::from_json(&text).unwrap();
        let axon = AxonInfo { ip: "192.0.2.1".parse().unwrap(), port: 8091, protocol: 0, version: 0 };
        let full = Neuron {
            uid: 3,
            hotkey: key(1),
            coldkey: Some(key(2)),
            stake_rao: 1,
            alpha_stake: 2,
            tao_stake: 3,
            validator_permit: true,
            incentive_u16: 4,
            emission_rao: 5,
            last_update: 6,
            axon: Some(axon),
        };
        assert_eq!((read.network.as_str(), read.netuid, read.block, read.taken_at), ("finney", 1, 7, 9));
        assert_eq!(read.neurons[0], full);
        assert_eq!((read.neurons[1].stake_rao, read.neurons[1].is_serving()), (0, false));
    }

    #[test]
    fn a_snapshot_that_cannot_be_written_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nowhere").join("metagraph.json");
        let error = snapshot().save(&path).unwrap_err();
        assert!(matches!(&error, MetagraphError::Write { path: p, .. } if *p == path), "{error}");
    }

    #[test]
    fn errors_name_line_and_field() {
        let text = serde_json::to_string_pretty(&snapshot()).unwrap();
        let with_float = text.replacen("21000000000000000", "2.1e16", 1);
        let error = Metagraph::from_json(&with_float).unwrap_err();
        let MetagraphError::Parse { field, line, .. } = &error else { panic!("{error}") };
        assert_eq!(field, "neurons[0].stake_rao");
        assert_eq!(*line, text.lines().position(|l| l.contains("stake_rao")).unwrap() + 1);

        let bad_key = text.replacen(&key(2).to_string(), "5notakey", 1);
        let error = Metagraph::from_json(&bad_key).unwrap_err().to_string();
        assert!(error.starts_with("neurons[1].hotkey: "), "{error}");

        let error = Metagraph::from_json("{\n\"schema_version\": 1,\n").unwrap_err().to_string();
        assert!(error.contains("(line "), "{error}");
        let error = Metagraph::from_json(&format!("{text} trailing")).unwrap_err();
        assert!(matches!(error, MetagraphError::Parse { .. }), "{error}");
    }

    #[test]
    fn impossible_content_is_refused_by_field() {
        let field_of = |change: fn(&mut Metagraph)| {
            let mut snapshot = snapshot();
            change(&mut snapshot);
            match Metagraph::from_json(&serde_json::to_string(&snapshot).unwrap()) {
                Err(MetagraphError::Invalid { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(field_of(|s| s.schema_version = 2), "schema_version");
        assert_eq!(field_of(|s| s.genesis_hash = "0x12".to_owned()), "genesis_hash");
        assert_eq!(field_of(|s| s.taken_at = -1), "taken_at");
        assert_eq!(field_of(|s| s.neurons[1].uid = 0), "neurons[1].uid");
        assert_eq!(field_of(|s| s.neurons[1].hotkey = key(1)), "neurons[1].hotkey");
    }

    #[test]
    fn age_decides_the_stage() {
        let clock = Arc::new(AtSecond::default());
        let view = SnapshotView::new(snapshot(), StageAges::default(), clock.clone());
        let stage_at = |age: i64| {
            clock.0.store(1_700_000_000 + age, Ordering::SeqCst);
            view.stage()
        };
        assert_eq!(stage_at(-100), Stage::Fresh);
        assert_eq!(stage_at(899), Stage::Fresh);
        assert_eq!(stage_at(900), Stage::Degraded);
        assert_eq!(stage_at(86_399), Stage::Degraded);
        assert_eq!(stage_at(86_400), Stage::Expired);
    }

    #[test]
    fn the_view_follows_the_file_and_outlives_a_bad_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metagraph.json");
        snapshot().save(&path).unwrap();
        let mut file = MetagraphFile::open(&path, StageAges::default(), Arc::new(AtSecond::default())).unwrap();
        let view = file.view();
        assert!(view.neuron(&key(1)).unwrap().is_serving());
        assert!(!view.neuron(&key(2)).unwrap().is_serving());
        assert!(view.neuron(&key(3)).is_none());
        assert!(!file.refresh().unwrap());

        let mut newer = snapshot();
        newer.neurons.remove(1);
        newer.neurons[0].validator_permit = false;
        newer.save(&path).unwrap();
        assert!(file.refresh().unwrap());
        assert!(view.neuron(&key(2)).is_none());
        assert!(!view.neuron(&key(1)).unwrap().validator_permit);

        std::fs::write(&path, "{").unwrap();
        assert!(file.refresh().is_err());
        assert!(!file.refresh().unwrap(), "the same bad file is reported once");
        assert!(view.neuron(&key(1)).is_some());
    }

    #[test]
    fn an_announced_address_of_zeros_is_no_axon() {
        let mut neuron = snapshot().neurons[0];
        neuron.axon = Some(AxonInfo { ip: "0.0.0.0".parse().unwrap(), port: 8091, protocol: 4, version: 1 });
        assert!(!neuron.is_serving());
        neuron.axon = Some(AxonInfo { ip: "192.0.2.7".parse().unwrap(), port: 0, protocol: 4, version: 1 });
        assert!(!neuron.is_serving());
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_snapshot_is_refused_or_read_for_what_it_says(
            flips in proptest::collection::vec((0_usize..4000, 0_u8..128), 0..6),
            cut in 0_usize..8000,
        ) {
            let mut text = serde_json::to_string(&snapshot()).unwrap().into_bytes();
            for (at, byte) in flips {
                let at = at % text.len();
                text[at] = byte;
            }
            text.truncate(cut);
            if let Ok(read) = Metagraph::from_json(std::str::from_utf8(&text).unwrap()) {
                let again = serde_json::to_string(&read).unwrap();
                proptest::prop_assert_eq!(Metagraph::from_json(&again).unwrap(), read);
            }
        }
    }
}
