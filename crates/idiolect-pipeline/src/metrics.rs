//! The metrics of this crate: one function each, so that names and labels stand in one place.

use std::time::Duration;

use idiolect_backend::FinishReason;
use idiolect_protocol::Category;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const REPLIES: &str = "idiolect_pipeline_replies_total";
const STAGE_SECONDS: &str = "idiolect_pipeline_stage_seconds";
const IN_FLIGHT: &str = "idiolect_pipeline_replies_in_flight";
const CANDIDATES: &str = "idiolect_pipeline_candidates_total";
const SELECTIONS: &str = "idiolect_pipeline_selections_total";
const NEAREST: &str = "idiolect_pipeline_nearest_total";
const CLAIMS: &str = "idiolect_pipeline_claims_total";
const GATE_DISTANCE: &str = "idiolect_pipeline_gate_distance_ratio";
const PREDICTED: &str = "idiolect_pipeline_predicted_reward_ratio";
const FLAGS: &str = "idiolect_pipeline_flags_total";
const UNSCORED: &str = "idiolect_pipeline_unscored_total";
const UNJUDGED: &str = "idiolect_pipeline_unjudged_total";
const LEARNT: &str = "idiolect_pipeline_learnt_total";
const PARAPHRASES: &str = "idiolect_pipeline_paraphrases_total";
const SEARCHES_CUT: &str = "idiolect_pipeline_searches_cut_total";
const MISSES: &str = "idiolect_pipeline_deadline_misses_total";
const BACKEND_FAILURES: &str = "idiolect_pipeline_backend_failures_total";
const TRIMMED: &str = "idiolect_pipeline_trimmed_prompt_tokens_total";
const RESERVE: &str = "idiolect_pipeline_score_reserve_seconds";
const REWARDS: &str = "idiolect_pipeline_rewards_total";
const RECORDS: &str = "idiolect_pipeline_records_total";
const RECORDS_LOST: &str = "idiolect_pipeline_records_lost_total";
const PRUNED: &str = "idiolect_pipeline_records_pruned_total";

/// Describes every metric to the installed recorder. Called when a pipeline starts; harmless when called again.
pub fn describe() {
    describe_counter!(
        REPLIES,
        "Calls by `transport` (grpc, http, epistula, btauth, local), `mode` (mutate, passthrough, none) and `outcome` (ok or the category of the error)"
    );
    describe_histogram!(STAGE_SECONDS, Unit::Seconds, "Time of a reply by `stage` (plan, generate, score, total)");
    describe_gauge!(IN_FLIGHT, "Replies in the making");
    describe_counter!(CANDIDATES, "Candidates with any text, by `finish` (stop, length, deadline, content_filter)");
    describe_counter!(
        SELECTIONS,
        "Choices by `reason` (best_that_clears, none_clears, highest_expected, quality_only, only_candidate, passthrough)"
    );
    describe_counter!(
        NEAREST,
        "Sent replies by the `source` of the nearest text known (no_op, the plain answer; sibling, another candidate of the model; sibling_model, a candidate of another model; panel, a recorded rival; quoted, a winner in the prompt; history, an earlier reply to the same prompt)"
    );
    describe_counter!(
        CLAIMS,
        "Replies written to the history before they were sent, by `outcome` (claimed; lost, chosen anew since something else came in; slow, failed, resting or contended, sent without; refused, nothing sent as another miner just sent the same)"
    );
    describe_counter!(LEARNT, "Replies that the policy of recipes was told of, by `outcome` (yes, failed)");
    describe_counter!(
        PARAPHRASES,
        "Prompts that a recipe wanted in other words, by `outcome` (said; known, from before; refused, it said something else; length; over_budget; no_time; failed): but for the first two the recipe was left out"
    );
    describe_histogram!(
        GATE_DISTANCE,
        "Distance of the sent reply to its nearest known neighbour, 0 to 1, in our encoder's space"
    );
    describe_histogram!(PREDICTED, "Predicted factor of the gate on the sent reply's reward, 0 to 1");
    describe_counter!(
        FLAGS,
        "Rules that candidates broke, by `kind` (empty, echo, keyword, preamble, label, role_leak, forbidden; by the validators' own arithmetic criteria, content_match, keyword_match, task_validator, blacklist, irrelevant)"
    );
    describe_counter!(UNSCORED, "Replies chosen without embeddings, by `why` (no_encoder, no_time, failed)");
    describe_counter!(
        UNJUDGED,
        "Replies chosen without rewards by the reward model there is, by `why` (no_time, failed)"
    );
    describe_counter!(
        SEARCHES_CUT,
        "Choices before which there was no time to compare every candidate with earlier replies"
    );
    describe_counter!(MISSES, "Calls whose deadline passed before there was any text");
    describe_counter!(
        BACKEND_FAILURES,
        "Requests to backends that failed or broke off, whether or not a reply came of it"
    );
    describe_counter!(TRIMMED, "Tokens left out of prompts to make them fit");
    describe_gauge!(RESERVE, Unit::Seconds, "Time set aside for scoring the last reply");
    describe_counter!(REWARDS, "Rewards that validators sent, by `matched` (yes, no)");
    describe_counter!(RECORDS, "Replies written to the store");
    describe_counter!(RECORDS_LOST, "Replies that could not be written to the store, by `why` (queue_full, store)");
    describe_counter!(PRUNED, "Replies erased from the store for their age or number");
}

/// Returns the label of a category.
const fn category_label(category: Category) -> &'static str {
    match category {
        Category::Malformed => "malformed",
        Category::TooLarge => "too_large",
        Category::Overloaded => "overloaded",
        Category::Unavailable => "unavailable",
        Category::Timeout => "timeout",
        Category::Internal => "internal",
        _ => "other",
    }
}

pub(crate) fn reply(transport: &'static str, mode: &'static str, outcome: Result<(), Category>) {
    let outcome = outcome.map_or_else(category_label, |()| "ok");
    counter!(REPLIES, "transport" => transport, "mode" => mode, "outcome" => outcome).increment(1);
}

pub(crate) fn paraphrase(outcome: &'static str) {
    counter!(PARAPHRASES, "outcome" => outcome).increment(1);
}

pub(crate) fn stage(stage: &'static str, took: Duration) {
    histogram!(STAGE_SECONDS, "stage" => stage).record(took);
}

/// Counts a reply in the making until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn new() -> Self {
        gauge!(IN_FLIGHT).increment(1);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!(IN_FLIGHT).decrement(1);
    }
}

pub(crate) fn candidate(finish: FinishReason) {
    let finish = match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::ContentFilter => "content_filter",
    };
    counter!(CANDIDATES, "finish" => finish).increment(1);
}

pub(crate) fn selection(reason: &'static str) {
    counter!(SELECTIONS, "reason" => reason).increment(1);
}

pub(crate) fn gate(distance: Option<f32>, predicted: f32) {
    if let Some(distance) = distance {
        histogram!(GATE_DISTANCE).record(f64::from(distance));
    }
    histogram!(PREDICTED).record(f64::from(predicted));
}

pub(crate) fn nearest(source: &'static str) {
    counter!(NEAREST, "source" => source).increment(1);
}

pub(crate) fn claim(outcome: &'static str) {
    counter!(CLAIMS, "outcome" => outcome).increment(1);
}

pub(crate) fn flag(kind: &'static str) {
    counter!(FLAGS, "kind" => kind).increment(1);
}

pub(crate) fn unscored(why: &'static str) {
    counter!(UNSCORED, "why" => why).increment(1);
}

pub(crate) fn learnt(outcome: &'static str) {
    counter!(LEARNT, "outcome" => outcome).increment(1);
}

pub(crate) fn unjudged(why: &'static str) {
    counter!(UNJUDGED, "why" => why).increment(1);
}

pub(crate) fn search_cut() {
    counter!(SEARCHES_CUT).increment(1);
}

pub(crate) fn deadline_missed() {
    counter!(MISSES).increment(1);
}

pub(crate) fn backend_failed() {
    counter!(BACKEND_FAILURES).increment(1);
}

pub(crate) fn trimmed(tokens: u32) {
    counter!(TRIMMED).increment(u64::from(tokens));
}

pub(crate) fn reserve(reserve: Duration) {
    gauge!(RESERVE).set(reserve.as_secs_f64());
}

pub(crate) fn rewards(matched: bool) {
    counter!(REWARDS, "matched" => if matched { "yes" } else { "no" }).increment(1);
}

pub(crate) fn recorded(n: usize) {
    counter!(RECORDS).increment(n as u64);
}

pub(crate) fn records_lost(why: &'static str, n: usize) {
    counter!(RECORDS_LOST, "why" => why).increment(n as u64);
}

pub(crate) fn pruned(n: u64) {
    counter!(PRUNED).increment(n);
}
