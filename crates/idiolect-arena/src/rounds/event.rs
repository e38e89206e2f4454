//! The validators' event log.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idiolect_validator::Cell;
use idiolect_validator::task::TaskKind;
use serde_json::{Map, Value, json};

use super::{StepDone, TestValidator};

/// The reward columns of opentensor/validators 1.2 (`openvalidators/event.py`), whatever models there are.
const COLUMNS_1_2: [&str; 19] = [
    "dahoas_reward_model",
    "blacklist_filter",
    "nsfw_filter",
    "reciprocate_reward_model",
    "diversity_reward_model",
    "dpo_reward_model",
    "rlhf_reward_model",
    "prompt_reward_model",
    "relevance_filter",
    "task_validator_filter",
    "dahoas_reward_model_normalized",
    "nsfw_filter_normalized",
    "reciprocate_reward_model_normalized",
    "diversity_reward_model_normalized",
    "dpo_reward_model_normalized",
    "rlhf_reward_model_normalized",
    "prompt_reward_model_normalized",
    "relevance_filter_normalized",
    "task_validator_filter_normalized",
];

/// Those of opentensor/text-prompting 2.1 (`prompting/validators/event.py`).
const COLUMNS_2_1: [&str; 33] = [
    "dahoas_reward_model",
    "blacklist_filter",
    "blacklist_filter_matched_ngram",
    "blacklist_filter_significance_score",
    "nsfw_filter",
    "reciprocate_reward_model",
    "diversity_reward_model",
    "diversity_reward_model_historic",
    "diversity_reward_model_batch",
    "dpo_reward_model",
    "rlhf_reward_model",
    "prompt_reward_model",
    "relevance_filter",
    "dahoas_reward_model_normalized",
    "nsfw_filter_normalized",
    "nsfw_filter_score",
    "reciprocate_reward_model_normalized",
    "diversity_reward_model_normalized",
    "dpo_reward_model_normalized",
    "rlhf_reward_model_normalized",
    "prompt_reward_model_normalized",
    "relevance_filter_normalized",
    "relevance_filter_bert_score",
    "relevance_filter_mpnet_score",
    "task_validation_penalty_raw",
    "task_validation_penalty_adjusted",
    "task_validation_penalty_applied",
    "keyword_match_penalty_raw",
    "keyword_match_penalty_adjusted",
    "keyword_match_penalty_applied",
    "sentence_match_penalty_raw",
    "sentence_match_penalty_adjusted",
    "sentence_match_penalty_applied",
];

/// What a block takes on the chain, in seconds; without a chain blocks are counted by the clock.
const BLOCK_S: f64 = 12.0;

/// Where and when a row is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Clock {
    /// The run's name.
    pub run: String,
    /// The number of the next row.
    pub row: u64,
    /// When the run began.
    pub began: SystemTime,
    /// When the row is written.
    pub now: SystemTime,
}

impl Clock {
    fn stamp(&self, row: &mut Map<String, Value>) {
        let since = |from: SystemTime| self.now.duration_since(from).unwrap_or(Duration::ZERO).as_secs_f64();
        let runtime = since(self.began);
        row.insert("block".to_owned(), json!((runtime / BLOCK_S).floor()));
        row.insert("_step".to_owned(), json!(self.row));
        row.insert("_runtime".to_owned(), json!(runtime));
        row.insert("_timestamp".to_owned(), json!(since(UNIX_EPOCH)));
        row.insert("run_id".to_owned(), json!(self.run));
    }
}

/// Returns a step as validators of the profile log it: 30 fields in version 1.2, 47 in 2.1. Columns of models that are not here are null, as is the
/// gating model's loss, which chooses nobody; blocks are counted by the clock from the run's begin.
#[must_use]
pub fn step_row(validator: &TestValidator, step: &StepDone, clock: &Clock) -> Value {
    let is_1_2 = validator.is_1_2;
    let mut row = Map::new();
    let texts: Vec<&str> = step.asked.iter().map(|asked| asked.text.as_str()).collect();
    let times: Vec<f64> = step.asked.iter().map(|asked| asked.time.as_secs_f64()).collect();
    let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
    put("completions", json!(texts));
    put("completion_times", json!(times));
    if !is_1_2 {
        let messages: Vec<&str> = step.asked.iter().map(|asked| asked.message.as_str()).collect();
        let codes: Vec<String> = step.asked.iter().map(|asked| asked.status.to_string()).collect();
        put("completion_status_messages", json!(messages));
        put("completion_status_codes", json!(codes));
        let task = match step.task.kind {
            TaskKind::Augment => "summarization",
            TaskKind::Followup => "question-generation",
            TaskKind::Answer => "question-answer",
        };
        put("task_type", json!(task));
    }
    put("name", json!(step.name));
    put("gating_loss", Value::Null);
    put("uids", json!(step.uids));
    put("prompt", json!(step.task.prompt));
    put("step_length", json!(step.took.as_secs_f64()));
    put("best", json!(step.best));
    put("set_weights", Value::Null);
    let columns: &[&str] = if is_1_2 { &COLUMNS_1_2 } else { &COLUMNS_2_1 };
    for name in columns {
        put(name, Value::Null);
    }
    put("rewards", Value::Null);
    for column in step.report.log_columns() {
        // What the version does not log is left out.
        if column.name == "rewards" || columns.contains(&column.name.as_str()) {
            let cells: Vec<Value> = column.cells.iter().map(cell).collect();
            put(&column.name, Value::Array(cells));
        }
    }
    clock.stamp(&mut row);
    Value::Object(row)
}

fn cell(cell: &Cell) -> Value {
    match cell {
        Cell::Number(number) => json!(number),
        Cell::Text(text) => json!(text),
        Cell::Nothing => Value::Null,
    }
}

/// Returns the moving averages as validators log them when they set weights.
#[must_use]
pub fn state_row(validator: &TestValidator, clock: &Clock) -> Value {
    let records = validator.records();
    let mut weights = validator.validator().average().scores().to_vec();
    // Whoever was not asked yet has earned nothing.
    weights.resize(weights.len().max(records.len()), 0.0);
    let hotkey = |uid: usize| records.get(uid).map_or_else(|| uid.to_string(), |record| record.hotkey.clone());
    let hotkeys: Vec<String> = (0..weights.len()).map(hotkey).collect();
    let mut row = Map::new();
    row.insert("step".to_owned(), json!(validator.validator().n_steps()));
    row.insert("neuron_weights".to_owned(), json!(weights));
    row.insert("neuron_hotkeys".to_owned(), json!(hotkeys));
    clock.stamp(&mut row);
    Value::Object(row)
}
