//! From the arena to the network that pays, a rung at a time: what has to be shown on each, and what has been.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use idiolect_dataset::{Entry, Step};
use idiolect_validator::Profile;
use serde::{Deserialize, Serialize};

use crate::statistics::{Interval, Resamples};

/// Draws of the interval of the place.
const N_DRAWS: usize = 2000;

/// Where a miner shows what it can do, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// Offline, against recorded populations or published runs.
    Arena,
    /// A chain of one's own, or a test validator, on this machine.
    Local,
    /// A test network.
    Test,
    /// The network that pays.
    Target,
}

impl Rung {
    /// All there are, in their order.
    pub const ALL: [Self; 4] = [Self::Arena, Self::Local, Self::Test, Self::Target];

    /// Returns its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Arena => "arena",
            Self::Local => "local",
            Self::Test => "test",
            Self::Target => "target",
        }
    }

    /// Returns the rung of a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.as_str() == name)
    }
}

/// What has to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Steps, at least.
    pub steps: usize,
    /// Share of replies that the diversity mask may take.
    pub masked_share: f64,
    /// The worse end of the interval of the place may be this part of a batch: 0.5 is the better half.
    pub place_part: f64,
    /// Calls that may be missed.
    pub missed: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { steps: 300, masked_share: 0.1, place_part: 0.5, missed: 0 }
    }
}

/// What was shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Steps.
    pub steps: usize,
    /// Share of replies that the diversity mask took.
    pub masked_share: f64,
    /// Mean place in a batch, 1 being the best, with an interval of 95 %.
    pub place: [f64; 3],
    /// Miners in a batch, the mean.
    pub batch: f64,
    /// Calls without a reply, or with one that came too late.
    pub missed: usize,
}

impl Gate {
    /// Returns what figures lack, in words; nothing where they pass.
    #[must_use]
    pub fn lacks(&self, figures: &Figures) -> Vec<String> {
        let mut lacks = Vec::new();
        if figures.steps < self.steps {
            lacks.push(format!("{} steps, {} are asked for", figures.steps, self.steps));
        }
        if figures.masked_share.is_nan() || figures.masked_share > self.masked_share {
            lacks.push(format!(
                "{:.3} of the replies masked, at most {} may be",
                figures.masked_share, self.masked_share
            ));
        }
        let cut = self.place_part * figures.batch;
        let [place, _, high] = figures.place;
        if high.is_nan() || high > cut {
            lacks.push(format!(
                "place {place:.1}, perhaps {high:.1}, of {:.0}, which is to be surely {cut:.1} or better",
                figures.batch
            ));
        }
        if figures.missed > self.missed {
            lacks.push(format!("{} calls missed, at most {} may be", figures.missed, self.missed));
        }
        lacks
    }
}

/// What somebody did by a log, step by step.
#[derive(Clone, Debug, Default)]
pub struct LogFigures {
    places: Vec<f64>,
    batch: f64,
    n_masked: usize,
    n_missed: usize,
}

/// Whose calls to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uid(pub u32);

impl LogFigures {
    /// Takes in an entry of a validators' log.
    pub fn take(&mut self, entry: &Entry, Uid(uid): Uid) {
        let Entry::Step(step) = entry else { return };
        let Some(nth) = step.calls.iter().position(|call| call.uid == Some(uid)) else { return };
        let Some(own) = step.calls[nth].reward else { return };
        let rewards = step.calls.iter().filter_map(|call| call.reward);
        let n_better = rewards.clone().filter(|other| *other > own).count();
        let n_same = rewards.filter(|other| *other == own).count();
        self.places.push(n_better as f64 + (n_same as f64 + 1.0) / 2.0);
        self.batch += step.calls.len() as f64;
        if crate::round::has_succeeded(step, nth) {
            self.n_masked += usize::from(is_masked(step, nth));
        } else {
            self.n_missed += 1;
        }
    }

    /// Returns the figures; `None` where it was asked in no step.
    #[must_use]
    pub fn figures(&self, seed: u64) -> Option<Figures> {
        let steps = self.places.len();
        if steps == 0 {
            return None;
        }
        let Interval { value, low, high } = Resamples::new(steps, N_DRAWS.min(20_000_000 / steps).max(20), seed)
            .of_means(&[&self.places], &|means| means[0]);
        Some(Figures {
            steps,
            masked_share: self.n_masked as f64 / steps as f64,
            place: [value, low, high],
            batch: self.batch / steps as f64,
            missed: self.n_missed,
        })
    }
}

/// Whether the diversity mask took a reply: all of it in version 2.1; in 1.2, which has no bound, less than 2.1's is left.
fn is_masked(step: &Step, nth: usize) -> bool {
    let bound = f64::from(Profile::text_prompting_2_1().gate.pass_above);
    let of = |name: &str| step.columns.get(name).map(|values| values[nth]).filter(|value| !value.is_nan());
    of("diversity_reward_model_normalized").or_else(|| of("diversity_reward_model")).is_some_and(|value| value <= bound)
}

/// What was shown on a rung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The rung.
    pub rung: Rung,
    /// The hash of the configuration that showed it.
    pub configuration: String,
    /// What the rung asked for.
    pub gate: Gate,
    /// What was shown.
    pub figures: Figures,
    /// Where this was read.
    pub source: String,
    /// When it was recorded, in seconds since 1970.
    pub time: u64,
}

/// Where a rung stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It was passed, and all before it.
    Passed,
    /// Its figures are good; those of an earlier rung are not there yet.
    Waits,
    /// What was shown is too little.
    Short,
    /// It was shown by another configuration.
    Void,
    /// Nothing was shown.
    Open,
}

/// A rung, and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The rung.
    pub rung: Rung,
    /// Where it stands.
    pub standing: Standing,
    /// The newest record that counts: of this configuration, else of another.
    pub record: Option<Record>,
    /// What is missing.
    pub lacks: Vec<String>,
}

/// A file of what was shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ladder {
    /// All records, oldest first.
    pub records: Vec<Record>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LadderError {
    /// It cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is no ladder")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Ladder {
    /// Reads a file; where there is none, nothing was shown yet.
    ///
    /// # Errors
    /// [`LadderError`].
    pub fn open(path: &Path) -> Result<Self, LadderError> {
        match fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| LadderError::Damaged { path: path.to_owned(), source })
            }
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(LadderError::Io { path: path.to_owned(), source }),
        }
    }

    /// Writes the file, all of it or nothing.
    ///
    /// # Errors
    /// [`LadderError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), LadderError> {
        let failed = |source| LadderError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_json::to_vec_pretty(self).map_err(|problem| failed(io::Error::other(problem)))?;
        let beside = path.with_extension("new");
        fs::write(&beside, text).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)
    }

    /// Returns where each rung stands for a configuration, by its hash, and the gates that count now: a gate that was made harder since takes back what was passed.
    #[must_use]
    pub fn status(&self, configuration: &str, gates: &BTreeMap<Rung, Gate>) -> Vec<Status> {
        let mut all = Vec::new();
        let mut is_open = true;
        for rung in Rung::ALL {
            let of_rung = || self.records.iter().rev().filter(|record| record.rung == rung);
            let record = of_rung().find(|record| record.configuration == configuration).or_else(|| of_rung().next());
            let gate = gates.get(&rung).copied().unwrap_or_default();
            let (standing, lacks) = match record {
                None => (Standing::Open, vec!["nothing was recorded".to_owned()]),
                Some(record) if record.configuration != configuration => {
                    let problem = format!("shown by configuration {}, which has changed since", record.configuration);
                    (Standing::Void, vec![problem])
                }
                Some(record) => match gate.lacks(&record.figures) {
                    lacks if !lacks.is_empty() => (Standing::Short, lacks),
                    _ if is_open => (Standing::Passed, Vec::new()),
                    _ => (Standing::Waits, vec!["a rung before it is not passed".to_owned()]),
                },
            };
            is_open &= standing == Standing::Passed;
            all.push(Status { rung, standing, record: record.cloned(), lacks });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use idiolect_dataset::History;

    use super::*;

    const GOOD: Figures = Figures { steps: 400, masked_share: 0.02, place: [10.0, 8.0, 12.0], batch: 50.0, missed: 0 };

    fn record(rung: Rung, configuration: &str, figures: Figures) -> Record {
        let (gate, source) = (Gate::default(), "report.json".to_owned());
        Record { rung, configuration: configuration.to_owned(), gate, figures, source, time: 1 }
    }

    fn standings(ladder: &Ladder, configuration: &str) -> Vec<Standing> {
        ladder.status(configuration, &BTreeMap::new()).into_iter().map(|status| status.standing).collect()
    }

    #[test]
    fn gates_say_what_is_missing() {
        let gate = Gate::default();
        assert!(gate.lacks(&GOOD).is_empty());
        let bad = Figures { steps: 20, masked_share: 0.3, place: [20.0, 15.0, 26.0], batch: 50.0, missed: 2 };
        assert_eq!(
            gate.lacks(&bad),
            [
                "20 steps, 300 are asked for",
                "0.300 of the replies masked, at most 0.1 may be",
                "place 20.0, perhaps 26.0, of 50, which is to be surely 25.0 or better",
                "2 calls missed, at most 0 may be",
            ]
        );
        assert_eq!(gate.lacks(&Figures { place: [f64::NAN; 3], ..GOOD }).len(), 1);
    }

    #[test]
    fn rungs_are_passed_in_their_order_by_one_configuration() {
        use Standing::{Open, Passed, Short, Void, Waits};
        let mut ladder = Ladder::default();
        assert_eq!(standings(&ladder, "a"), [Open, Open, Open, Open]);
        ladder.records.push(record(Rung::Local, "a", GOOD));
        assert_eq!(standings(&ladder, "a"), [Open, Waits, Open, Open]);
        ladder.records.push(record(Rung::Arena, "a", Figures { steps: 3, ..GOOD }));
        assert_eq!(standings(&ladder, "a"), [Short, Waits, Open, Open]);
        ladder.records.push(record(Rung::Arena, "a", GOOD));
        assert_eq!(standings(&ladder, "a"), [Passed, Passed, Open, Open]);
        // Another configuration has shown nothing; going back to the first one counts again.
        assert_eq!(standings(&ladder, "b"), [Void, Void, Open, Open]);
        ladder.records.push(record(Rung::Arena, "b", GOOD));
        assert_eq!(standings(&ladder, "b"), [Passed, Void, Open, Open]);
        assert_eq!(standings(&ladder, "a"), [Passed, Passed, Open, Open]);
        let harder = BTreeMap::from([(Rung::Arena, Gate { steps: 1000, ..Gate::default() })]);
        let status = ladder.status("a", &harder);
        assert_eq!((status[0].standing.clone(), status[0].lacks[0].as_str()), (Short, "400 steps, 1000 are asked for"));
        assert_eq!(status[1].standing, Waits);
    }

    #[test]
    fn what_was_shown_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/ladder.json");
        let mut ladder = Ladder::open(&path).unwrap();
        ladder.records.push(record(Rung::Arena, "a", GOOD));
        ladder.save(&path).unwrap();
        assert_eq!(Ladder::open(&path).unwrap(), ladder);
        fs::write(&path, "{\"records\": 3}").unwrap();
        assert!(Ladder::open(&path).unwrap_err().to_string().ends_with("ladder.json is no ladder"));
        assert!(matches!(Ladder::open(dir.path()), Err(LadderError::Io { .. })));
        assert_eq!(Rung::of_name("test"), Some(Rung::Test));
        assert_eq!(Rung::of_name("moon"), None);
    }

    #[test]
    fn figures_are_read_off_published_logs() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idiolect-dataset/tests/data/openvalidators");
        let mut figures = LogFigures::default();
        let (mut n, mut n_late) = (0, 0);
        for entry in History::open(&folder.join("history_text_prompting_2.1.jsonl.zst")).unwrap() {
            let entry = entry.unwrap();
            if let Entry::Step(step) = &entry
                && let Some(call) = step.calls.iter().find(|call| call.uid == Some(7))
            {
                n += 1;
                n_late += usize::from(call.status != Some(200));
            }
            figures.take(&entry, Uid(7));
        }
        let found = figures.figures(0).unwrap();
        assert_eq!((found.steps, found.missed, found.batch), (n, n_late, 12.0));
        assert!(
            n > 5 && found.place[1] <= found.place[0] && found.place[0] <= found.place[2] && found.place[2] <= 12.0
        );
        assert!(found.masked_share > 0.0 && found.masked_share < 1.0, "{found:?}");
        assert_eq!(LogFigures::default().figures(0), None);
    }
}
