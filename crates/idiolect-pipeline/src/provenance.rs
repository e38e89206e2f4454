//! The record of how one reply came to be.

use std::fmt;
use std::time::Duration;

use idiolect_backend::{FinishReason, Message};
use idiolect_mutation::repair::Repair;
use idiolect_mutation::{Applied, Flag, Recipe, SamplingOverrides};
use idiolect_uniqueness::chance::Chance;
use idiolect_uniqueness::quality::Quality;
use idiolect_uniqueness::{CandidateScore, Neighbour};
use serde::{Deserialize, Serialize};

/// One candidate, sent or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateRecord {
    /// Its number in the request, from 0.
    pub index: usize,
    /// The recipe's name: `no-op`, or the operators' names and versions.
    pub recipe: String,
    /// The operators that changed its prompt, with their texts.
    pub operators: Vec<Applied>,
    /// The sampling settings that the recipe changed.
    #[serde(default, skip_serializing_if = "SamplingOverrides::is_empty")]
    pub sampling: SamplingOverrides,
    /// The chance that the policy had to draw the recipe, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propensity: Option<f32>,
    /// The backend that wrote it; of a pool, the member.
    pub backend: String,
    /// The model that wrote it.
    pub model: String,
    /// The text as it would be sent; `None` where texts are not kept.
    pub text: Option<String>,
    /// Tokens generated.
    pub n_tokens: u32,
    /// Why it ended.
    pub finish: FinishReason,
    /// Whether an unfinished sentence was cut off its end.
    pub trimmed: bool,
    /// What was changed of it by rule, so that it loses less of its reward.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<Repair>,
    /// Mean log-probability a token under its own model, where known.
    pub mean_logprob: Option<f32>,
    /// What the guard found.
    pub flags: Vec<Flag>,
    /// The estimated quality.
    pub quality: Quality,
    /// What is predicted of the gate; `None` in passthrough.
    pub score: Option<CandidateScore>,
    /// Its place, from 0 for the best.
    pub rank: usize,
    /// Whether it was sent.
    pub sent: bool,
}

/// Time spent on one reply, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From the call to the requests to the backends: drawing recipes, and saying the prompt in other words.
    pub plan_ms: f64,
    /// Until the candidates were there.
    pub generate_ms: f64,
    /// Until they were embedded and one was chosen.
    pub score_ms: f64,
    /// From the call to the reply.
    pub total_ms: f64,
    /// Time set aside for scoring.
    pub reserve_ms: f64,
    /// Time there was from the call to the deadline.
    pub budget_ms: f64,
}

/// Returns milliseconds, to the microsecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// The record of how one reply came to be.
///
/// Its `Display` is what `idiolect explain` prints; as JSON it has all of it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The reply's id: a UUID of version 7, so that ids sort by time.
    pub id: String,
    /// When the call came, in milliseconds since 1970.
    pub time_ms: i64,
    /// Who asked, as ss58 text; `None` for our own questions.
    pub caller: Option<String>,
    /// The transport: `grpc`, `http`, `epistula`, `btauth`; `local` for our own questions.
    pub transport: String,
    /// The synapse or route.
    pub synapse: String,
    /// The caller's task name, otherwise the detected one's.
    pub task: String,
    /// `mutate` or `passthrough`.
    pub mode: String,
    /// The prompt; `None` where prompts are not kept.
    pub prompt: Option<Vec<Message>>,
    /// A hash of the prompt; `None` where not even that is kept.
    pub prompt_hash: Option<String>,
    /// Messages of the prompt.
    pub n_messages: usize,
    /// The number that recipes and candidates were drawn by; with the library it gives them again.
    pub seed: u64,
    /// The candidates, by index. Those without any text are left out.
    pub candidates: Vec<CandidateRecord>,
    /// Indices of the candidates that were sent, best first.
    pub sent: Vec<usize>,
    /// Why the first of them was chosen.
    pub reason: String,
    /// What the sent reply is nearest to of all that it was compared with: `no_op`, `sibling`, `sibling_model`, `panel`,
    /// `quoted` or `history`.
    #[serde(default)]
    pub nearest_source: Option<String>,
    /// The effective number of different candidates: the Vendi score of their embeddings.
    #[serde(default)]
    pub vendi: Option<f32>,
    /// The encoder, when candidates were embedded.
    pub encoder: Option<String>,
    /// The reward model, when candidates were judged by it.
    #[serde(default)]
    pub reward_model: Option<String>,
    /// The profile of the gate.
    pub profile: String,
    /// Earlier replies that were compared with.
    pub n_history: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// So many of them were known to the backend from an earlier prompt that began alike, and not computed anew. 0 where it
    /// does not say.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Tokens left out of the prompt's middle to make it fit the context; 0 when nothing was.
    pub trimmed_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// What went wrong on the way, though there is a reply.
    pub notes: Vec<String>,
    /// Where the time went.
    pub timings: Timings,
    /// What the caller's validator gave for the completions that were sent, when it said so.
    #[serde(default)]
    pub rewards: Vec<f32>,
}

/// Prompts and replies stay out of logs.
impl fmt::Debug for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provenance")
            .field("id", &self.id)
            .field("transport", &self.transport)
            .field("mode", &self.mode)
            .field("n_candidates", &self.candidates.len())
            .field("sent", &self.sent)
            .field("reason", &self.reason)
            .field("timings", &self.timings)
            .finish_non_exhaustive()
    }
}

impl Provenance {
    /// Returns the candidate that was sent first.
    #[must_use]
    pub fn chosen(&self) -> Option<&CandidateRecord> {
        let first = *self.sent.first()?;
        self.candidates.iter().find(|candidate| candidate.index == first)
    }

    /// Returns the messages that a candidate's model was given, made anew of the prompt and the recipe; `None` where the prompt
    /// was not kept.
    #[must_use]
    pub fn messages(&self, candidate: &CandidateRecord) -> Option<Vec<Message>> {
        let recipe = Recipe { operators: candidate.operators.clone(), ..Recipe::default() };
        Some(recipe.apply(self.prompt.as_ref()?))
    }
}

impl Provenance {
    /// Returns why the first was sent: the reason's name, and what it means.
    fn reason_in_words(&self) -> String {
        let meaning = match self.reason.as_str() {
            "only_candidate" => "there was only one",
            "best_that_clears" => {
                "of those that clear the gate the best product of quality and chance not to be masked"
            }
            "none_clears" => "none clears the gate: the best product of quality and predicted reward",
            "highest_expected" => "the profile has no mask: the best product of quality and predicted reward",
            "quality_only" => "nothing was embedded: the best quality",
            "passthrough" => "the first, since the caller dictates sampling or checks the answer",
            _ => return self.reason.clone(),
        };
        format!("{}: {meaning}", self.reason)
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "reply     {}", self.id)?;
        let caller = self.caller.as_deref().unwrap_or("ourselves");
        writeln!(f, "asked by  {caller} over {} ({})", self.transport, self.synapse)?;
        writeln!(f, "task      {}, {}", self.task, self.mode)?;
        let Timings { plan_ms, generate_ms, score_ms, total_ms, budget_ms, .. } = self.timings;
        writeln!(
            f,
            "time      {total_ms:.0} of {budget_ms:.0} ms: plan {plan_ms:.1}, generate {generate_ms:.0}, score {score_ms:.1}"
        )?;
        write!(f, "tokens    {} of the prompt", self.prompt_tokens)?;
        if self.cached_tokens > 0 {
            write!(f, " ({} of them from the prefix cache)", self.cached_tokens)?;
        }
        writeln!(f, ", {} generated", self.completion_tokens)?;
        if self.trimmed_tokens > 0 {
            writeln!(f, "trimmed   {} tokens were left out of the middle of the prompt", self.trimmed_tokens)?;
        }
        let encoder = self.encoder.as_deref().unwrap_or("no encoder");
        writeln!(f, "gate      {}, {encoder}, {} earlier replies", self.profile, self.n_history)?;
        writeln!(f, "chosen    {}", self.reason_in_words())?;
        if let Some(source) = &self.nearest_source {
            writeln!(f, "nearest   {source}")?;
        }
        if let Some(vendi) = self.vendi {
            writeln!(
                f,
                "variety   {} candidates count as {vendi:.2} different ones (Vendi score)",
                self.candidates.len()
            )?;
        }
        if let Some(model) = &self.reward_model {
            writeln!(f, "quality   by {model}")?;
        }
        for note in &self.notes {
            writeln!(f, "note      {note}")?;
        }
        if !self.rewards.is_empty() {
            writeln!(f, "rewards   {:?}", self.rewards)?;
        }
        for message in self.prompt.iter().flatten() {
            writeln!(f, "\n{}:\n{}", message.role, indented(&message.content))?;
        }
        for candidate in &self.candidates {
            write!(f, "\n{candidate}")?;
        }
        Ok(())
    }
}

impl fmt::Display for CandidateRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = if self.sent { " <- sent" } else { "" };
        writeln!(f, "candidate {} (rank {}){sent}: {} by {}", self.index, self.rank + 1, self.recipe, self.model)?;
        let finish = match self.finish {
            FinishReason::Stop => "finished",
            FinishReason::Length => "cut at the token limit",
            FinishReason::Deadline => "cut at the deadline",
            FinishReason::ContentFilter => "cut by a filter",
        };
        write!(f, "  {} tokens, {finish}, quality {:.2}", self.n_tokens, self.quality.score)?;
        if let Some(reward) = self.quality.reward {
            let raw = reward.raw.map_or_else(|| "no number".to_owned(), |raw| format!("{raw:.2}"));
            write!(f, ", reward {raw} ({:.2} normalised)", reward.normalised)?;
        }
        if let Some(logprob) = self.mean_logprob {
            write!(f, ", mean log-probability {logprob:.2}")?;
        }
        writeln!(f)?;
        if let Some(score) = &self.score {
            // A reward by the history is there as soon as there are two earlier replies.
            let historic = score.historic.map_or_else(|| "none".to_owned(), |historic| format!("{historic:.2}"));
            write!(f, "  predicted reward {:.2} (batch {:.2}, historic {historic})", score.predicted, score.batch)?;
            if let Some(distance) = score.distance {
                write!(f, ", nearest at {distance:.3}")?;
            }
            match &score.nearest {
                Some(Neighbour::Sibling(i)) => write!(f, " (candidate {i})")?,
                Some(Neighbour::Panel(label) | Neighbour::Quoted(label)) => write!(f, " ({label})")?,
                Some(Neighbour::Earlier(id)) => write!(f, " (reply {id})")?,
                _ => {}
            }
            if let Some(distance) = score.history_distance {
                write!(f, ", second-nearest earlier reply at {distance:.3}")?;
            }
            if let Some(Chance { p, low, high }) = score.masked {
                write!(f, ", masked with a chance of {p:.2} ({low:.2} to {high:.2})")?;
            }
            if let Some(told) = score.distinctiveness {
                write!(f, ", {told:+.2} for what other prompts taught")?;
            }
            writeln!(f, "{}", if score.clears { ", clears the gate" } else { ", does not clear the gate" })?;
        }
        for repair in &self.repairs {
            writeln!(f, "  repaired, {}: {}", repair.kind.as_str(), repair.note)?;
        }
        for flag in &self.flags {
            writeln!(f, "  {}: {:?} costs {:.0} %", flag.kind.as_str(), flag.rule, flag.penalty * 100.0)?;
        }
        for operator in &self.operators {
            writeln!(f, "  {} {}: {}", operator.place, operator.name, operator.text)?;
        }
        if let Some(text) = &self.text {
            writeln!(f, "{}", indented(text))?;
        }
        Ok(())
    }
}

/// Texts come from callers and models: what would move a terminal's cursor is shown, not obeyed.
fn indented(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 16);
    for (i, line) in text.lines().enumerate() {
        shown.push_str(if i > 0 { "\n  | " } else { "  | " });
        for c in line.chars() {
            if c.is_control() && c != '\t' {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
    }
    shown
}
