//! From TOML to a profile, with the line of whatever is wrong.

use std::collections::BTreeMap;

use idiolect_uniqueness::{GateMode, GateProfile, Sigmoid};
use serde::Deserialize;
use serde_path_to_error::{Path, Segment};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{Mask, Penalties, Profile, ProfileError, RelevanceBounds, RewardText};
use crate::dpo::{DpoRules, Repetition};
use crate::mask::NgramRules;

const EXTENDS: &str = "extends";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    alpha: f64,
    normaliser_count_limit: usize,
    reward_text: RewardText,
    followup_words: Option<usize>,
    masks: Vec<Mask>,
    nsfw_bound: f32,
    rewards: BTreeMap<String, f64>,
    dpo: DpoRules,
    penalties: Option<Penalties>,
    relevance: RelevanceBounds,
    ngram_blacklist: Option<NgramRules>,
    gate: Gate,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Curve {
    slope: f64,
    offset: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gate {
    batch: Curve,
    historic: Curve,
    batch_rank: usize,
    history_rank: usize,
    history_skip: usize,
    history_keep: usize,
    mode: GateMode,
    pass_above: f32,
}

/// Where in the file each key is.
struct Lines<'a> {
    text: &'a str,
    table: DeTable<'a>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Result<Self, ProfileError> {
        match DeTable::parse(text) {
            Ok(table) => Ok(Self { text, table: table.into_inner() }),
            Err(error) => {
                let line = line(text, error.span().map_or(0, |span| span.start));
                Err(ProfileError::Syntax { line, reason: error.message().to_owned() })
            }
        }
    }

    /// Returns the line of the deepest part of a path with dots that the file has.
    fn of_key(&self, key: &str) -> Option<usize> {
        let mut table = &self.table;
        let mut found = None;
        for part in key.split('.') {
            let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref().as_ref() == part) else { break };
            found = Some(line(self.text, name.span().start));
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        found
    }
}

fn line(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

pub(super) fn read(text: &str) -> Result<Profile, ProfileError> {
    let lines = Lines::of(text)?;
    let mut table = toml::from_str::<Table>(text)
        .map_err(|error| ProfileError::Syntax { line: 1, reason: error.message().to_owned() })?;
    if let Some(base) = table.remove(EXTENDS) {
        let base = match &base {
            Value::String(name) => Profile::built_in_toml(name).ok(),
            _ => None,
        };
        let Some(base) = base else {
            return Err(ProfileError::Range {
                line: lines.of_key(EXTENDS),
                key: EXTENDS.to_owned(),
                found: lines.table.get(EXTENDS).map(shown).unwrap_or_default(),
                expected: "openvalidators-1.2 or text-prompting-2.1",
            });
        };
        let mut whole = toml::from_str::<Table>(base).expect("the built-in file is valid");
        overlay(&mut whole, table);
        table = whole;
    }
    let value = Value::Table(table);
    check_finite(&lines, "", &value)?;
    let file: File = serde_path_to_error::deserialize(value).map_err(|error| {
        let key = dotted(error.path());
        let line = lines.of_key(&key);
        let reason = error.into_inner();
        let reason = reason.message();
        let reason = if key.is_empty() { reason.to_owned() } else { format!(": {reason}") };
        ProfileError::Key { line, key, reason }
    })?;
    Checks { lines: &lines }.check(&file)?;
    Ok(file.into_profile())
}

fn shown(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(text) => format!("{text:?}"),
        other => other.type_str().to_owned(),
    }
}

/// Puts the keys of `over` into `base`, table by table. A table that says `rule` replaces one of another rule whole.
fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above))
                if above.get("rule").is_none_or(|rule| below.get("rule") == Some(rule)) =>
            {
                overlay(below, above);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn dotted(path: &Path) -> String {
    let names = path.iter().filter_map(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    names.collect::<Vec<_>>().join(".")
}

fn check_finite(lines: &Lines<'_>, key: &str, value: &Value) -> Result<(), ProfileError> {
    match value {
        Value::Float(number) if !number.is_finite() => Err(ProfileError::Range {
            line: lines.of_key(key),
            key: key.to_owned(),
            found: number.to_string(),
            expected: "a finite number",
        }),
        Value::Table(table) => table.iter().try_for_each(|(name, value)| {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            check_finite(lines, &key, value)
        }),
        _ => Ok(()),
    }
}

struct Checks<'a> {
    lines: &'a Lines<'a>,
}

impl Checks<'_> {
    fn range(&self, key: &str, value: f64, fits: bool, expected: &'static str) -> Result<(), ProfileError> {
        if fits {
            return Ok(());
        }
        let line = self.lines.of_key(key);
        Err(ProfileError::Range { line, key: key.to_owned(), found: value.to_string(), expected })
    }

    fn unit(&self, key: &str, value: f64) -> Result<(), ProfileError> {
        self.range(key, value, (0.0..=1.0).contains(&value), "a number from 0 to 1")
    }

    fn at_least_1(&self, key: &str, value: usize) -> Result<(), ProfileError> {
        self.range(key, value as f64, value > 0, "at least 1")
    }

    fn check(&self, file: &File) -> Result<(), ProfileError> {
        self.weights(&file.rewards)?;
        self.masks(&file.masks)?;
        self.unit("alpha", file.alpha)?;
        self.at_least_1("normaliser_count_limit", file.normaliser_count_limit)?;
        self.at_least_1("gate.history_keep", file.gate.history_keep)?;
        for (key, rank) in [("batch_rank", file.gate.batch_rank), ("history_rank", file.gate.history_rank)] {
            self.range(&format!("gate.{key}"), rank as f64, (1..=1000).contains(&rank), "1 to 1000")?;
        }
        if let Some(words) = file.followup_words {
            self.at_least_1("followup_words", words)?;
        }
        self.unit("gate.pass_above", f64::from(file.gate.pass_above))?;
        for (key, curve) in [("gate.batch.slope", file.gate.batch), ("gate.historic.slope", file.gate.historic)] {
            self.range(key, curve.slope, curve.slope > 0.0, "a number above 0: more distance is never worth less")?;
        }
        if let Some(penalties) = &file.penalties {
            self.penalties(penalties)?;
        }
        match file.dpo.repetition {
            Repetition::Ignored => {}
            Repetition::Scaled { factor, lag } => {
                self.range("dpo.repetition.factor", factor, factor > 0.0, "a number above 0")?;
                self.at_least_1("dpo.repetition.lag", lag)?;
            }
            Repetition::NoRepeatNgram { n, .. } => self.at_least_1("dpo.repetition.n", n)?,
        }
        file.ngram_blacklist.as_ref().map_or(Ok(()), |rules| self.ngrams(rules))
    }

    fn weights(&self, weights: &BTreeMap<String, f64>) -> Result<(), ProfileError> {
        for (name, weight) in weights {
            self.unit(&format!("rewards.{name}"), *weight)?;
        }
        let sum: f64 = weights.values().sum();
        if (sum - 1.0).abs() <= 1e-6 {
            return Ok(());
        }
        // Sums of decimal fractions have long tails.
        let sum = ((sum * 1e6).round() / 1e6).to_string();
        Err(ProfileError::Weights { line: self.lines.of_key("rewards"), sum })
    }

    fn masks(&self, masks: &[Mask]) -> Result<(), ProfileError> {
        let twice = masks.iter().enumerate().find(|(i, mask)| masks[..*i].contains(mask));
        twice.map_or(Ok(()), |(_, mask)| {
            let found = format!("a list with {} twice", mask.as_str());
            let line = self.lines.of_key("masks");
            Err(ProfileError::Range { line, key: "masks".to_owned(), found, expected: "each mask once at most" })
        })
    }

    fn penalties(&self, penalties: &Penalties) -> Result<(), ProfileError> {
        let criteria = &penalties.criteria;
        let unit = [
            ("task_validation", penalties.task_validation),
            ("content_match", penalties.content_match),
            ("keyword_match", penalties.keyword_match),
            ("criteria.layout", criteria.layout),
            ("criteria.layout_in_answer", criteria.layout_in_answer),
            ("criteria.length", criteria.length),
            ("criteria.content", criteria.content),
            ("openings.cost", penalties.openings.cost),
        ];
        for (key, value) in unit {
            self.unit(&format!("penalties.{key}"), value)?;
        }
        let steepness = criteria.length_steepness;
        self.range("penalties.criteria.length_steepness", steepness, steepness >= 0.0, "a number not below 0")
    }

    fn ngrams(&self, rules: &NgramRules) -> Result<(), ProfileError> {
        let error = rules.error;
        let is_share = error > 0.0 && error <= 1.0;
        self.range("ngram_blacklist.error", error, is_share, "a number above 0, at most 1")?;
        self.unit("ngram_blacklist.support", rules.support)?;
        let ratio = rules.partial_ratio_boundary;
        self.range("ngram_blacklist.partial_ratio_boundary", f64::from(ratio), ratio <= 100, "0 to 100")?;
        self.at_least_1("ngram_blacklist.n_min", rules.n_min)?;
        let is_above = (rules.n_min..=64).contains(&rules.n_max);
        self.range("ngram_blacklist.n_max", rules.n_max as f64, is_above, "n_min to 64")?;
        self.at_least_1("ngram_blacklist.token_limit", rules.token_limit)?;
        self.at_least_1("ngram_blacklist.memory_limit", rules.memory_limit)?;
        let half_life = usize::try_from(rules.half_life).unwrap_or(usize::MAX);
        self.at_least_1("ngram_blacklist.half_life", half_life)?;
        for (key, value) in [
            ("word_factor", rules.word_factor),
            ("frequency_multiplier", rules.frequency_multiplier),
            ("boundary", rules.boundary),
        ] {
            self.range(&format!("ngram_blacklist.{key}"), value, value >= 0.0, "a number not below 0")?;
        }
        Ok(())
    }
}

impl File {
    fn into_profile(self) -> Profile {
        let curve = |c: Curve| Sigmoid { slope: c.slope, offset: c.offset };
        Profile {
            gate: GateProfile {
                name: self.name.clone().into(),
                batch: curve(self.gate.batch),
                historic: curve(self.gate.historic),
                batch_rank: self.gate.batch_rank,
                history_rank: self.gate.history_rank,
                history_skip: self.gate.history_skip,
                history_keep: self.gate.history_keep,
                mode: self.gate.mode,
                pass_above: self.gate.pass_above,
            },
            name: self.name,
            alpha: self.alpha,
            normaliser_count_limit: self.normaliser_count_limit,
            reward_text: self.reward_text,
            followup_words: self.followup_words,
            rewards: self.rewards,
            masks: self.masks,
            penalties: self.penalties,
            relevance: self.relevance,
            nsfw_bound: self.nsfw_bound,
            dpo: self.dpo,
            ngram_blacklist: self.ngram_blacklist,
        }
    }
}
