//! What a row says.

use std::collections::BTreeMap;

use crate::cell::{Cell, Record};

/// Which validators wrote a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Generation {
    /// opentensor/validators 1.0: a row is a follow-up question and its answer.
    OpenValidators1_0,
    /// opentensor/validators 1.1 and 1.2: a row is a step.
    OpenValidators1_2,
    /// opentensor/text-prompting 2: a row is a step, with penalties.
    TextPrompting2,
}

impl Generation {
    /// Returns the name of the profile whose arithmetic such validators used: of 1.0 the one that is nearest.
    #[must_use]
    pub const fn profile(self) -> &'static str {
        match self {
            Self::OpenValidators1_0 | Self::OpenValidators1_2 => "openvalidators-1.2",
            Self::TextPrompting2 => "text-prompting-2.1",
        }
    }

    /// Returns what reports call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenValidators1_0 => "openvalidators-1.0",
            Self::OpenValidators1_2 => "openvalidators-1.1 to 1.2",
            Self::TextPrompting2 => "text-prompting-2",
        }
    }
}

/// Where and when a row was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The run; one validator has many, one after the other.
    pub run: Option<String>,
    /// The number of the row in its run (`_step`).
    pub row: Option<u64>,
    /// When, in seconds since 1970.
    pub time: Option<f64>,
    /// The block of the chain.
    pub block: Option<u64>,
}

/// One prompt, sent to many miners at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Who wrote it.
    pub generation: Generation,
    /// Where and when.
    pub origin: Origin,
    /// `augment`, `followup0` and so on, `answer0` and so on; without a number in 1.0.
    pub name: String,
    /// The whole text that was sent.
    pub prompt: String,
    /// The completion of the highest reward, as the validator noted it; there even where every reward is 0.
    pub best: Option<String>,
    /// What each miner did, in the order of the row.
    pub calls: Vec<Call>,
    /// What else the row has of each call, by the column's name: what reward models, masks and penalties said. Not a number where
    /// the row has nothing. 1.0's are without `followup_` and `answer_`.
    pub columns: BTreeMap<String, Vec<f64>>,
}

/// What one miner did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// Its place in the subnet.
    pub uid: Option<u32>,
    /// What it said; empty where it failed.
    pub completion: String,
    /// How long it took, in seconds.
    pub time: Option<f64>,
    /// The status, where the row has one: 200, 408, 403 and so on.
    pub status: Option<u16>,
    /// The final reward.
    pub reward: Option<f64>,
}

/// The moving average of every miner, from time to time.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Where and when.
    pub origin: Origin,
    /// The validator's step.
    pub step: Option<u64>,
    /// By uid.
    pub weights: Vec<f64>,
    /// By uid; as many, or none.
    pub hotkeys: Vec<String>,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Row {
    /// One step, or two.
    Steps(Vec<Step>),
    State(State),
    /// Neither: something that other software logged.
    Unknown,
}

/// Reads a row. Errors say what is wrong with it.
pub(crate) fn read(mut record: Record) -> Result<Row, String> {
    record.retain(|_, cell| !cell.is_null() && *cell != Cell::Text(String::new()));
    let has = |name: &str| record.contains_key(name);
    if has("neuron_weights") {
        return state(&mut record).map(Row::State);
    }
    if has("base_prompt") && has("answer_prompt") {
        let origin = origin(&mut record)?;
        let followup = of_1_0(&mut record, &origin, "followup", "base_prompt", "best_followup")?;
        let answer = of_1_0(&mut record, &origin, "answer", "answer_prompt", "best_answer")?;
        return Ok(Row::Steps(vec![followup, answer]));
    }
    let generation = if has("task_type") {
        Generation::TextPrompting2
    } else if has("name") && (has("task_validator_filter") || has("completions")) {
        Generation::OpenValidators1_2
    } else {
        return Ok(Row::Unknown);
    };
    let origin = origin(&mut record)?;
    let name = text(&mut record, "name")?.ok_or("name is missing")?;
    let prompt = text(&mut record, "prompt")?.ok_or("prompt is missing")?;
    let best = text(&mut record, "best")?;
    let (calls, columns) = calls(record, "completions", "completion_times")?;
    Ok(Row::Steps(vec![Step { generation, origin, name, prompt, best, calls, columns }]))
}

fn of_1_0(record: &mut Record, origin: &Origin, name: &str, prompt: &str, best: &str) -> Result<Step, String> {
    let of_prompt = text(record, prompt)?.ok_or_else(|| format!("{prompt} is missing"))?;
    let best = text(record, best)?;
    let prefix = format!("{name}_");
    let keys: Vec<String> = record.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
    let mut own = Record::new();
    for key in keys {
        if let (Some(short), Some(cell)) = (key.strip_prefix(&prefix), record.get(&key)) {
            own.insert(short.to_owned(), cell.clone());
        }
    }
    let (calls, columns) = calls(own, "completions", "times").map_err(|problem| format!("{prefix}{problem}"))?;
    let (generation, origin) = (Generation::OpenValidators1_0, origin.clone());
    Ok(Step { generation, origin, name: name.to_owned(), prompt: of_prompt, best, calls, columns })
}

/// Figures of each call, by their columns' names.
type Columns = BTreeMap<String, Vec<f64>>;

/// Reads what there is of each call.
fn calls(mut record: Record, completions: &str, times: &str) -> Result<(Vec<Call>, Columns), String> {
    let Some(Cell::List(texts)) = record.remove(completions) else {
        return Err(format!("{completions} is missing, expected a list"));
    };
    let mut calls = Vec::with_capacity(texts.len());
    for cell in texts {
        let completion = match cell {
            Cell::Text(text) => text,
            Cell::Null => String::new(),
            other => return Err(format!("{completions} has {}, expected texts", other.kind())),
        };
        calls.push(Call { completion, ..Call::default() });
    }
    let n = calls.len();
    let mut numbers = |name: &str| -> Result<Option<Vec<f64>>, String> {
        record.remove(name).map(|cell| list_of_numbers(name, cell, n)).transpose()
    };
    let (uids, times, rewards) = (numbers("uids")?, numbers(times)?, numbers("rewards")?);
    for (i, call) in calls.iter_mut().enumerate() {
        let of = |list: &Option<Vec<f64>>| list.as_ref().map(|list| list[i]).filter(|value| !value.is_nan());
        call.uid = of(&uids).map(|uid| whole("uids", uid)).transpose()?.and_then(|uid| u32::try_from(uid).ok());
        call.time = of(&times);
        call.reward = of(&rewards);
    }
    if let Some(codes) = record.remove("completion_status_codes") {
        let Cell::List(codes) = codes else {
            return Err(format!("completion_status_codes is {}, expected a list", codes.kind()));
        };
        same("completion_status_codes", codes.len(), n)?;
        for (call, code) in calls.iter_mut().zip(codes) {
            call.status = match code {
                Cell::Text(text) => text.trim().parse().ok(),
                Cell::Number(number) => {
                    whole("completion_status_codes", number).ok().and_then(|code| u16::try_from(code).ok())
                }
                _ => None,
            };
        }
    }
    let mut columns = BTreeMap::new();
    for (name, cell) in record {
        let is_numbers = |cell: &Cell| cell.is_null() || cell.number().is_some();
        // Messages and matched phrases are texts.
        let Cell::List(list) = &cell else { continue };
        if list.iter().all(is_numbers) && is_of_calls(&name) {
            let numbers = list_of_numbers(&name, cell, n)?;
            columns.insert(name, numbers);
        }
    }
    Ok((calls, columns))
}

/// Columns of other lengths are about something else: the gating model's scores have one for each miner.
fn is_of_calls(name: &str) -> bool {
    !name.starts_with("gating") && !name.starts_with("moving_averaged") && name != "set_weights"
}

fn list_of_numbers(name: &str, cell: Cell, n: usize) -> Result<Vec<f64>, String> {
    let Cell::List(list) = cell else { return Err(format!("{name} is {}, expected a list", cell.kind())) };
    same(name, list.len(), n)?;
    let number = |cell: &Cell| match cell {
        Cell::Null => Ok(f64::NAN),
        cell => cell.number().ok_or_else(|| format!("{name} has {}, expected numbers", cell.kind())),
    };
    list.iter().map(number).collect()
}

fn same(name: &str, found: usize, n: usize) -> Result<(), String> {
    if found == n { Ok(()) } else { Err(format!("{name} has {found} entries, completions {n}")) }
}

fn whole(name: &str, number: f64) -> Result<u64, String> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
    if number.fract() == 0.0 && (0.0..9e15).contains(&number) {
        Ok(number as u64)
    } else {
        Err(format!("{name} has {number}, expected whole numbers of at least 0"))
    }
}

fn origin(record: &mut Record) -> Result<Origin, String> {
    let mut number = |name: &str| record.remove(name).and_then(|cell| cell.number()).filter(|number| !number.is_nan());
    let (row, time, block) = (number("_step"), number("_timestamp"), number("block"));
    let row = row.map(|row| whole("_step", row)).transpose()?;
    let block = block.map(|block| whole("block", block)).transpose()?;
    let run = match record.remove("run_id") {
        Some(Cell::Text(run)) => Some(run),
        Some(Cell::Number(run)) => Some(run.to_string()),
        _ => None,
    };
    Ok(Origin { run, row, time, block })
}

fn text(record: &mut Record, name: &str) -> Result<Option<String>, String> {
    match record.remove(name) {
        None => Ok(None),
        Some(Cell::Text(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{name} is {}, expected a text", other.kind())),
    }
}

fn state(record: &mut Record) -> Result<State, String> {
    let origin = origin(record)?;
    let step = record.remove("step").and_then(|cell| cell.number()).map(|step| whole("step", step)).transpose()?;
    let Some(Cell::List(weights)) = record.remove("neuron_weights") else {
        return Err("neuron_weights is no list".to_owned());
    };
    let n = weights.len();
    let weights = list_of_numbers("neuron_weights", Cell::List(weights), n)?;
    let hotkeys = match record.remove("neuron_hotkeys") {
        Some(Cell::List(hotkeys)) => {
            let text = |cell: Cell| {
                if let Cell::Text(text) = cell {
                    Ok(text)
                } else {
                    Err(format!("neuron_hotkeys has {}, expected texts", cell.kind()))
                }
            };
            hotkeys.into_iter().map(text).collect::<Result<Vec<String>, String>>()?
        }
        _ => Vec::new(),
    };
    if !hotkeys.is_empty() && hotkeys.len() != n {
        return Err(format!("neuron_hotkeys has {} entries, neuron_weights {n}", hotkeys.len()));
    }
    Ok(State { origin, step, weights, hotkeys })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Result<Row, String> {
        read(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        for (json, expected) in [
            (r#"{"task_type": "t", "name": "augment"}"#, "prompt is missing"),
            (r#"{"task_type": "t", "name": 3, "prompt": "p"}"#, "name is a number, expected a text"),
            (r#"{"task_type": "t", "name": "augment", "prompt": "p"}"#, "completions is missing, expected a list"),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x", 1]}"#,
                "completions has a number, expected texts",
            ),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x"], "uids": [1, 2]}"#,
                "uids has 2 entries, completions 1",
            ),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x"], "uids": [1.5]}"#,
                "uids has 1.5, expected whole numbers",
            ),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x"], "rewards": 0.5}"#,
                "rewards is a number, expected a list",
            ),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x"], "rewards": ["good"]}"#,
                "rewards has a text, expected numbers",
            ),
            (
                r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x"], "block": -1}"#,
                "block has -1, expected whole numbers",
            ),
            (
                r#"{"base_prompt": "b", "answer_prompt": "a", "followup_completions": ["x"], "followup_uids": []}"#,
                "followup_uids has 0 entries",
            ),
            (
                r#"{"neuron_weights": [0.5], "neuron_hotkeys": ["a", "b"]}"#,
                "neuron_hotkeys has 2 entries, neuron_weights 1",
            ),
        ] {
            let problem = row(json).unwrap_err();
            assert!(problem.starts_with(expected), "{json}: {problem}");
        }
        assert_eq!(row(r#"{"_step": 3, "loss": 0.5}"#), Ok(Row::Unknown));
        assert_eq!(row(r#"{"name": "augment", "prompt": "p"}"#), Ok(Row::Unknown));
    }

    #[test]
    fn odd_values_are_nothing() {
        let json = r#"{"task_type": "t", "name": "a", "prompt": "p", "completions": ["x", null], "uids": [3, null], "rewards": ["NaN", 0.25],
            "completion_status_codes": ["200", null], "dpo_reward_model": [null, "-Infinity"], "gating_scorings": [1, 2, 3],
            "blacklist_filter_matched_ngram": ["('a', 'b')", null], "rlhf_reward_model": null, "best": ""}"#;
        let Ok(Row::Steps(steps)) = row(json) else { panic!() };
        let [step] = &steps[..] else { panic!("{steps:?}") };
        let call = |uid, completion: &str, status, reward| Call {
            uid,
            completion: completion.to_owned(),
            time: None,
            status,
            reward,
        };
        assert_eq!(step.calls, [call(Some(3), "x", Some(200), None), call(None, "", None, Some(0.25))]);
        assert_eq!(step.best, None);
        let names: Vec<&str> = step.columns.keys().map(String::as_str).collect();
        assert_eq!(names, ["dpo_reward_model"]);
        assert!(
            step.columns["dpo_reward_model"][0].is_nan() && step.columns["dpo_reward_model"][1] == f64::NEG_INFINITY
        );
    }
}
