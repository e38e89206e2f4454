//! Replies of rivals that run the same model behind other system prompts, made once and kept.

use std::collections::HashSet;
use std::path::Path;

use idiolect_backend::{Backend, Error, Message, Request, Sampling};
use idiolect_uniqueness::lexical::fnv1a;
use serde::{Deserialize, Serialize};

use crate::lines::{Lines, LinesError};
use crate::texts::ArenaPrompt;

/// System prompts as stock miners have them.
pub const SYSTEM_PROMPTS: [&str; 4] = [
    "You are a helpful assistant.",
    "You are a friendly chatbot. Give short and accurate answers to whatever the user asks.",
    "You are an expert in every field. Follow the user's instructions exactly and write in a clear, complete and well organised way.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed and polite answers to the user's questions.",
];

/// Replies that each of them gives to a prompt.
pub const SEEDS: usize = 5;

/// A rival's reply, as a line of the file: the form of [`Replies`](crate::Replies).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RivalReply {
    /// The prompt's id.
    #[serde(rename = "p")]
    pub prompt: String,
    /// The rival: `rival-2#5` is the fifth reply behind the second system prompt.
    #[serde(rename = "m")]
    pub name: String,
    /// The reply.
    #[serde(rename = "t")]
    pub text: String,
}

/// Why there are no rivals.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RivalsError {
    /// The file cannot be used.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The model gave no reply.
    #[error("no rivals' replies to prompt {prompt}")]
    Model {
        /// Which prompt.
        prompt: String,
        /// Why.
        source: Error,
    },
}

/// Makes what is missing of 20 replies to each prompt, four system prompts by five draws, and keeps each as soon as its request is answered; what
/// is there is not made again. Returns all replies of the file. Draws are by the seed and the prompt, where the backend keeps seeds;
/// `progress` is told how many requests are done, of how many.
///
/// # Errors
/// Any [`RivalsError`].
pub async fn make(
    backend: &dyn Backend,
    sampling: &Sampling,
    prompts: &[ArenaPrompt],
    path: &Path,
    seed: u64,
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<Vec<RivalReply>, RivalsError> {
    let (mut file, mut replies) = Lines::open::<RivalReply>(path)?;
    let known: HashSet<(String, String)> =
        replies.iter().map(|reply| (reply.prompt.clone(), reply.name.clone())).collect();
    let is_known = |prompt: &str, name: String| known.contains(&(prompt.to_owned(), name));
    let is_missing =
        |(prompt, nth): &(&ArenaPrompt, usize)| (0..SEEDS).any(|draw| !is_known(&prompt.id, name(*nth, draw)));
    let all = prompts.iter().flat_map(|prompt| (0..SYSTEM_PROMPTS.len()).map(move |nth| (prompt, nth)));
    let missing: Vec<(&ArenaPrompt, usize)> = all.filter(is_missing).collect();
    // Side by side, as many as there are system prompts: engines fill their batches, and what is lost when one breaks off is little.
    for (done, some) in missing.chunks(SYSTEM_PROMPTS.len()).enumerate() {
        progress(done * SYSTEM_PROMPTS.len(), missing.len());
        let answers = some.iter().map(|(prompt, nth)| backend.complete(request(prompt, *nth, sampling, seed)));
        let answers = futures_util::future::join_all(answers).await;
        for ((prompt, nth), answer) in some.iter().zip(answers) {
            let failed = |source| RivalsError::Model { prompt: prompt.id.clone(), source };
            let candidates = answer.map_err(failed)?.candidates;
            let reply = |(draw, candidate): (usize, &idiolect_backend::Candidate)| RivalReply {
                prompt: prompt.id.clone(),
                name: name(*nth, draw),
                text: candidate.text.trim().to_owned(),
            };
            let made = candidates.iter().take(SEEDS).enumerate().map(reply);
            let made: Vec<RivalReply> = made.filter(|reply| !is_known(&prompt.id, reply.name.clone())).collect();
            file.add(&made)?;
            replies.extend(made);
        }
    }
    progress(missing.len(), missing.len());
    Ok(replies)
}

fn name(nth: usize, draw: usize) -> String {
    format!("rival-{}#{}", nth + 1, draw + 1)
}

fn request(prompt: &ArenaPrompt, nth: usize, sampling: &Sampling, seed: u64) -> Request {
    let messages = vec![Message::system(SYSTEM_PROMPTS[nth]), Message::user(prompt.prompt.as_str())];
    // All draws of a request are made, though some be there already: the same ones come of the same seed.
    let seed = fnv1a(prompt.id.bytes()).wrapping_add(seed).wrapping_add((nth as u64 + 1) << 32);
    Request { n: SEEDS, sampling: Sampling { seed: Some(seed), ..sampling.clone() }, ..Request::new(messages) }
}
