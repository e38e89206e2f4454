//! What is known, and where from.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use time::format_description::well_known::Iso8601;

use crate::PlanError;

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(time::Date);

impl Date {
    /// Makes one of the library's.
    #[must_use]
    pub const fn new(date: time::Date) -> Self {
        Self(date)
    }

    /// Returns the days from another one to this one; negative where it is later.
    #[must_use]
    pub fn days_since(self, other: Self) -> i64 {
        (self.0 - other.0).whole_days()
    }
}

impl FromStr for Date {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        time::Date::parse(text, &Iso8601::DATE).map(Self).map_err(|_| PlanError::Date(text.to_owned()))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }
}

impl Serialize for Date {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An input that a plan may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    /// Its name in snapshots.
    pub key: &'static str,
    /// Its name on the command line.
    pub flag: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What it is taken to be where nobody says.
    pub default: Option<f64>,
    /// The least it may be, and the most.
    pub range: (f64, f64),
}

const ANY: (f64, f64) = (0.0, 1e15);
const POSITIVE: (f64, f64) = (1e-12, 1e15);

const fn field(
    key: &'static str,
    flag: &'static str,
    unit: &'static str,
    about: &'static str,
    default: Option<f64>,
    range: (f64, f64),
) -> Field {
    Field { key, flag, unit, about, default, range }
}

/// Every input. Defaults of the chain are those of its runtime, which each subnet may change; those of validators are openvalidators'.
pub const FIELDS: [Field; 23] = [
    field("burn_tao", "burn-tao", "TAO", "what registering burns, never to be had back", None, ANY),
    field("tao_usd", "tao-usd", "USD", "price of a TAO", None, ANY),
    field("alpha_tao", "alpha-tao", "TAO", "price of the subnet's alpha in TAO; 1 where emission is in TAO", None, ANY),
    field(
        "emission_per_tempo",
        "emission-per-tempo",
        "alpha",
        "what all miners of the subnet get at an epoch, together",
        None,
        ANY,
    ),
    field("tempo_blocks", "tempo-blocks", "blocks", "from epoch to epoch", Some(360.0), POSITIVE),
    field("block_s", "block-s", "s", "from block to block", Some(12.0), POSITIVE),
    field("immunity_blocks", "immunity-blocks", "blocks", "for which a newcomer cannot be pruned", Some(4096.0), ANY),
    field("n_miners", "n-miners", "", "miners that share the emission", Some(256.0), (1.0, 65_535.0)),
    field(
        "registrations_per_day",
        "registrations-per-day",
        "1/day",
        "newcomers, of whom each takes the place of the lowest miner that is not immune",
        None,
        ANY,
    ),
    field(
        "asked_per_step",
        "asked-per-step",
        "",
        "miners that a validator asks in a step",
        Some(50.0),
        (1.0, 65_535.0),
    ),
    field("step_s", "step-s", "s", "from step to step of a validator", Some(15.0), POSITIVE),
    field("n_validators", "n-validators", "", "validators that ask", Some(10.0), (0.0, 65_535.0)),
    field("alpha", "alpha", "", "the newest step's share of a moving average", Some(0.05), (1e-6, 1.0)),
    field("gpu_usd_per_hour", "gpu-usd-per-hour", "USD/h", "price of a machine", None, ANY),
    field("gpus", "gpus", "", "machines", Some(1.0), ANY),
    field("prompt_usd_per_million", "prompt-usd-per-million", "USD", "price of a million tokens read", None, ANY),
    field(
        "completion_usd_per_million",
        "completion-usd-per-million",
        "USD",
        "price of a million tokens written",
        None,
        ANY,
    ),
    field("prompt_tokens", "prompt-tokens", "tokens", "read for a reply, all candidates together", Some(400.0), ANY),
    field(
        "completion_tokens",
        "completion-tokens",
        "tokens",
        "written for a reply, all candidates together",
        Some(600.0),
        ANY,
    ),
    field(
        "other_usd_per_day",
        "other-usd-per-day",
        "USD/day",
        "whatever else it costs: storage, traffic, work",
        Some(0.0),
        ANY,
    ),
    field(
        "price_sd_per_day",
        "price-sd-per-day",
        "",
        "standard deviation of a day's change of the price, in logarithms",
        Some(0.04),
        (0.0, 1.0),
    ),
    field("horizon_days", "horizon-days", "days", "by when it is to have paid", Some(90.0), (1.0, 3650.0)),
    field("stale_days", "stale-days", "days", "older values are warned of", Some(7.0), ANY),
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The command line.
    Flag,
    /// A snapshot, with what it says of its source.
    Snapshot(String),
    /// What is taken where nobody says.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Snapshot(source) if source.is_empty() => f.write_str("snapshot"),
            Self::Snapshot(source) => write!(f, "snapshot: {source}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value, and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Given {
    /// The input's name.
    pub key: &'static str,
    /// Its value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Where it comes from.
    pub origin: Origin,
    /// When it was so; `None` of defaults.
    pub date: Option<Date>,
}

/// All that is known. What is set later counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    given: BTreeMap<&'static str, Given>,
    /// Each miner's share of the emission, the highest first.
    incentives: Option<(Vec<f64>, Origin, Date)>,
}

impl Inputs {
    /// Makes inputs of which nothing is known but defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value that somebody gave today.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] and [`PlanError::Range`].
    pub fn set_flag(&mut self, key: &str, value: f64, today: Date) -> Result<(), PlanError> {
        self.set(key, value, Origin::Flag, today)
    }

    fn set(&mut self, key: &str, value: f64, origin: Origin, date: Date) -> Result<(), PlanError> {
        let Some(field) = FIELDS.iter().find(|field| field.key == key) else {
            let known = FIELDS.map(|field| field.key).join(", ");
            return Err(PlanError::Unknown { key: key.to_owned(), known: format!("{known}, incentives") });
        };
        let (least, most) = field.range;
        if !(least..=most).contains(&value) {
            let expected = match (least, most) {
                (0.0, 1e15) => "a number of at least 0".to_owned(),
                (1e-12, 1e15) => "a number above 0".to_owned(),
                _ => format!("a number from {least} to {most}"),
            };
            return Err(PlanError::Range { key: key.to_owned(), value: value.to_string(), expected });
        }
        let given = Given { key: field.key, value, unit: field.unit, origin, date: Some(date) };
        self.given.insert(field.key, given);
        Ok(())
    }

    /// Sets each miner's share of the emission, in any order and unit; they are divided by their sum. Validators' are 0 and may be among them.
    ///
    /// # Errors
    /// [`PlanError::Range`] for what is no share, or where all are 0.
    pub fn set_incentives(&mut self, incentives: &[f64], origin: Origin, date: Date) -> Result<(), PlanError> {
        let wrong = |value: String, expected: &str| PlanError::Range {
            key: "incentives".to_owned(),
            value,
            expected: expected.to_owned(),
        };
        if let Some(odd) = incentives.iter().find(|share| !(0.0..=1e15).contains(*share)) {
            return Err(wrong(odd.to_string(), "numbers of at least 0"));
        }
        let sum: f64 = incentives.iter().sum();
        if sum <= 0.0 {
            return Err(wrong(format!("{} times 0", incentives.len()), "somebody with more than 0"));
        }
        let mut shares: Vec<f64> = incentives.iter().map(|share| share / sum).collect();
        shares.sort_by(|a, b| b.total_cmp(a));
        self.incentives = Some((shares, origin, date));
        Ok(())
    }

    /// Takes in a snapshot: a TOML file with a date for all, `date = "2026-11-20"`, and values, `burn_tao = 0.5` or `burn_tao = { value = 0.5, date =
    /// "2026-11-19", source = "btcli subnet list" }`; `incentives` is a list. What is set already is kept.
    ///
    /// # Errors
    /// [`PlanError::Snapshot`] for what is no such file, and as [`set_flag`](Self::set_flag).
    pub fn add_snapshot(&mut self, text: &str) -> Result<(), PlanError> {
        let table: toml::Table =
            text.parse().map_err(|problem: toml::de::Error| PlanError::Snapshot(problem.message().to_owned()))?;
        let date = |value: &toml::Value, key: &str| -> Result<Date, PlanError> {
            match value {
                toml::Value::String(text) => text.parse(),
                toml::Value::Datetime(date) => date.to_string().parse(),
                other => Err(PlanError::Snapshot(format!("{key} is {other}, expected a date"))),
            }
        };
        let of_all = table.get("date").map(|value| date(value, "date")).transpose()?;
        let mut of_file = Self::new();
        for (key, value) in table.iter().filter(|(key, _)| *key != "date") {
            let (value, own, source) = match value {
                toml::Value::Table(table) => {
                    if let Some(odd) = table.keys().find(|key| !["value", "date", "source"].contains(&key.as_str())) {
                        return Err(PlanError::Snapshot(format!(
                            "{key}.{odd} is unknown, expected value, date or source"
                        )));
                    }
                    let value = table.get("value").ok_or_else(|| PlanError::Snapshot(format!("{key} has no value")))?;
                    let own = table.get("date").map(|value| date(value, key)).transpose()?;
                    let source = table.get("source").and_then(toml::Value::as_str).unwrap_or_default();
                    (value, own, source.to_owned())
                }
                value => (value, None, String::new()),
            };
            let dated = own.or(of_all).ok_or_else(|| {
                PlanError::Snapshot(format!(
                    "{key} has no date, expected date = \"YEAR-MONTH-DAY\" with it or for the whole file"
                ))
            })?;
            let number = |value: &toml::Value| {
                let whole = |n: i64| n as f64;
                value.as_float().or_else(|| value.as_integer().map(whole))
            };
            let wrong = || PlanError::Snapshot(format!("{key} is {value}, expected a number"));
            let origin = Origin::Snapshot(source);
            if key == "incentives" {
                let list = value.as_array().ok_or_else(|| PlanError::Snapshot("incentives is no list".to_owned()))?;
                let list: Option<Vec<f64>> = list.iter().map(number).collect();
                let list = list.ok_or_else(|| PlanError::Snapshot("incentives has what is no number".to_owned()))?;
                of_file.set_incentives(&list, origin, dated)?;
            } else {
                of_file.set(key, number(value).ok_or_else(wrong)?, origin, dated)?;
            }
        }
        for (key, given) in of_file.given {
            self.given.entry(key).or_insert(given);
        }
        self.incentives = self.incentives.take().or(of_file.incentives);
        Ok(())
    }

    /// Returns an input, its default where nobody gave it; `None` where it has none, and for a name that no input has.
    #[must_use]
    pub fn given(&self, key: &str) -> Option<Given> {
        self.given.get(key).cloned().or_else(|| {
            let field = FIELDS.iter().find(|field| field.key == key)?;
            let value = field.default?;
            Some(Given { key: field.key, value, unit: field.unit, origin: Origin::Default, date: None })
        })
    }

    /// Returns an input's value.
    ///
    /// # Errors
    /// [`PlanError::Missing`] where nobody gave it and it has no default.
    pub fn value(&self, key: &'static str) -> Result<f64, PlanError> {
        self.given(key).map(|given| given.value).ok_or_else(|| {
            let field = FIELDS.iter().find(|field| field.key == key);
            let (about, flag) = field.map_or(("", key), |field| (field.about, field.flag));
            PlanError::Missing { key, about, flag }
        })
    }

    /// Returns each miner's share of the emission, the highest first, with their origin and date.
    #[must_use]
    pub fn incentives(&self) -> Option<(&[f64], &Origin, Date)> {
        self.incentives.as_ref().map(|(shares, origin, date)| (shares.as_slice(), origin, *date))
    }
}
