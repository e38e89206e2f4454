//! A backend that answers with recorded replies.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use idiolect_backend::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, Error, FinishReason, Health, Message, Request,
    Role, Score, ScoreRequest, StageKind, Usage, stream_of,
};
use idiolect_uniqueness::lexical::fnv1a;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use crate::lines::LinesError;
use crate::replies::{AskedPrompt, Replies, RepliesError};
use crate::statistics::below;

/// Names that an error lists; of longer lists it says how many more there are.
const MOST_NAMED: usize = 8;

/// Seeds that differ in no higher bit draw one order of replies between them, and each begins one reply later than the one before: who asks
/// for the rest of a request's candidates by its next seed gets no reply twice.
const SHARED_BITS: u32 = 20;

/// Which record answers, as text `recorded:REPLIES?prompts=FILE&models=NAME,NAME`. Both options may be missing.
///
/// ```
/// use idiolect_arena::RecordedSpec;
///
/// let spec: RecordedSpec = "recorded:replies.jsonl.zst?prompts=prompts.jsonl&models=gpt,alpaca".parse().unwrap();
/// assert_eq!((spec.prompts.unwrap().to_str(), spec.models.len()), (Some("prompts.jsonl"), 2));
/// let error = "recorded:replies.jsonl?model=gpt".parse::<RecordedSpec>().unwrap_err().to_string();
/// assert_eq!(error, "option \"model=gpt\" of a record, expected prompts=FILE or models=NAME,NAME");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedSpec {
    /// The file of replies, as [`Replies::open`] reads it.
    pub replies: PathBuf,
    /// A file of JSON lines, `{"id": ID, "prompt": TEXT}`, that says what the replies' prompts are. Without it the replies give
    /// each prompt's own text in place of an id.
    pub prompts: Option<PathBuf>,
    /// The models that answer; empty is all.
    pub models: Vec<String>,
}

impl RecordedSpec {
    /// What a text of this kind begins with.
    pub const PREFIX: &str = "recorded:";
}

impl FromStr for RecordedSpec {
    type Err = RecordedError;

    fn from_str(text: &str) -> Result<Self, RecordedError> {
        let Some(rest) = text.strip_prefix(Self::PREFIX) else {
            return Err(RecordedError::Spec(text.to_owned()));
        };
        let (replies, options) = rest.split_once('?').unwrap_or((rest, ""));
        if replies.is_empty() {
            return Err(RecordedError::Spec(text.to_owned()));
        }
        let mut spec = Self { replies: PathBuf::from(replies), prompts: None, models: Vec::new() };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("prompts", file)) if !file.is_empty() => spec.prompts = Some(PathBuf::from(file)),
                Some(("models", names)) if names.split(',').all(|name| !name.trim().is_empty()) => {
                    spec.models = names.split(',').map(|name| name.trim().to_owned()).collect();
                }
                _ => return Err(RecordedError::Option(option.to_owned())),
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for RecordedSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.replies.display())?;
        let prompts = self.prompts.as_ref().map(|file| format!("prompts={}", file.display()));
        let models = (!self.models.is_empty()).then(|| format!("models={}", self.models.join(",")));
        let options: Vec<String> = prompts.into_iter().chain(models).collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

/// Why a record cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordedError {
    /// A text names no record.
    #[error("{0:?} names no record, expected recorded:REPLIES or recorded:REPLIES?prompts=FILE&models=NAME,NAME")]
    Spec(String),
    /// An option is not known, or has no value.
    #[error("option {0:?} of a record, expected prompts=FILE or models=NAME,NAME")]
    Option(String),
    /// The replies cannot be used.
    #[error("cannot use the replies {path}")]
    Replies {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RepliesError,
    },
    /// The prompts cannot be used.
    #[error("cannot use the prompts")]
    Prompts(#[from] LinesError),
    /// A model is in no line.
    #[error("no reply is by {model}; there are {known}")]
    Model {
        /// The model.
        model: String,
        /// Those that there are.
        known: String,
    },
    /// The prompts lack one that was answered.
    #[error("the replies {replies} answer prompt {id}, which the prompts {prompts} do not have")]
    Unasked {
        /// The file of replies.
        replies: PathBuf,
        /// The file of prompts.
        prompts: PathBuf,
        /// The prompt's id.
        id: String,
    },
    /// Nobody says anything.
    #[error("the replies {0} have no text, expected one at least")]
    Nothing(PathBuf),
}

#[derive(Clone, Debug)]
struct Said {
    model: Arc<str>,
    text: String,
}

/// A backend that answers with recorded replies, for experiments on choices among them.
///
/// The last user message is looked up, without the white space around it; all else of the conversation counts for nothing. `n` candidates are `n`
/// different replies to it, fewer where there are not so many. With a seed they are drawn by it and by the prompt, so that the
/// next seed begins with the second of them; without one they are the first of the file. [`Request::model`] narrows them to one model's where it is one of those that answer.
///
/// Replies are as they are, so that sampling has no say but for `max_tokens` and stop texts, which cut them. Tokens are estimated: seven
/// letters, three digits or one other character each. A prompt that is not on record is [`Error::Unsupported`]: other members of a pool
/// may know what to say.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use idiolect_arena::RecordedBackend;
/// use idiolect_backend::BackendExt as _;
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("replies.jsonl");
/// std::fs::write(&file, r#"{"p": "Why is the sky blue?", "m": "gpt", "t": "Air scatters blue light."}"#)?;
/// let spec = format!("recorded:{}", file.display()).parse()?;
/// let backend = RecordedBackend::open("recorded", &spec)?;
/// assert_eq!(backend.ask("Why is the sky blue?").await?, "Air scatters blue light.");
/// assert!(backend.ask("Why is grass green?").await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RecordedBackend {
    name: String,
    capabilities: Capabilities,
    /// What is said to each prompt, by its text.
    said: HashMap<String, Vec<Said>>,
    models: BTreeSet<Arc<str>>,
    /// What is on record, for messages.
    known: String,
}

impl RecordedBackend {
    /// Reads a record; `name` is what the backend is called.
    ///
    /// # Errors
    /// Any [`RecordedError`] but those of parsing.
    pub fn open(name: impl Into<String>, spec: &RecordedSpec) -> Result<Self, RecordedError> {
        let failed = |source| RecordedError::Replies { path: spec.replies.clone(), source };
        let replies = Replies::open(&spec.replies).map_err(failed)?;
        let models: BTreeSet<&str> = replies.all().iter().map(|reply| reply.model.as_str()).collect();
        if let Some(model) = spec.models.iter().find(|model| !models.contains(model.as_str())) {
            return Err(RecordedError::Model { model: model.clone(), known: names(models.into_iter()) });
        }
        let asked = spec.prompts.as_deref().map(asked).transpose()?;
        let is_ours = |model: &str| spec.models.is_empty() || spec.models.iter().any(|own| own == model);
        let (mut said, mut speakers): (HashMap<String, Vec<Said>>, BTreeSet<Arc<str>>) = Default::default();
        let mut ids = BTreeSet::new();
        for reply in replies.all().iter().filter(|reply| is_ours(&reply.model) && !reply.text.is_empty()) {
            let text = match (&asked, &spec.prompts) {
                (Some(asked), Some(prompts)) => asked.get(&reply.prompt).ok_or_else(|| RecordedError::Unasked {
                    replies: spec.replies.clone(),
                    prompts: prompts.clone(),
                    id: reply.prompt.clone(),
                })?,
                _ => &reply.prompt,
            };
            let model: Arc<str> =
                speakers.get(reply.model.as_str()).cloned().unwrap_or_else(|| reply.model.as_str().into());
            speakers.insert(Arc::clone(&model));
            ids.insert(reply.prompt.as_str());
            said.entry(text.trim().to_owned()).or_default().push(Said { model, text: reply.text.clone() });
        }
        let mut all = speakers.iter();
        let model = match (all.next(), speakers.len()) {
            (None, _) => return Err(RecordedError::Nothing(spec.replies.clone())),
            (Some(model), 1) => model.to_string(),
            (_, n) => format!("{n} recorded models"),
        };
        // Without a file of prompts the ids are the prompts, which no message may hold.
        let such_as = if asked.is_some() { format!(" ({})", names(ids.iter().copied())) } else { String::new() };
        let known = format!(
            "{} has {} prompt{}{such_as}, answered by {}",
            spec.replies.display(),
            said.len(),
            if said.len() == 1 { "" } else { "s" },
            names(speakers.iter().map(|model| &**model))
        );
        let mut capabilities = Capabilities::new(model);
        (capabilities.seed, capabilities.batched_candidates) = (true, true);
        // Nothing is drawn, so that every chain draws the same; but a shape is more than a record can promise.
        capabilities.stages = StageKind::ALL.into_iter().filter(|kind| *kind != StageKind::Constraint).collect();
        Ok(Self { name: name.into(), capabilities, said, models: speakers, known })
    }

    /// Returns the replies to a request, in the order in which they are given, as many as it asks for.
    fn replies(&self, request: &Request) -> Result<Vec<&Said>, Error> {
        let last = request.messages.iter().rev().find(|message| message.role == Role::User);
        let prompt = last.map_or("", |message| message.content.trim());
        let unknown = || Error::Unsupported {
            backend: self.name.clone(),
            what: format!("a prompt that is not on record: {}", self.known),
        };
        let mut replies: Vec<&Said> = self.said.get(prompt).ok_or_else(unknown)?.iter().collect();
        if let Some(model) = &request.model
            && self.models.contains(model.as_str())
        {
            replies.retain(|said| *said.model == **model);
            if replies.is_empty() {
                let what = format!("a prompt that {model} has not answered: {}", self.known);
                return Err(Error::Unsupported { backend: self.name.clone(), what });
            }
        }
        if let Some(seed) = request.sampling.seed {
            let mut random = ChaCha8Rng::seed_from_u64(seed >> SHARED_BITS);
            random.set_stream(fnv1a(prompt.bytes()));
            for i in (1..replies.len()).rev() {
                replies.swap(i, below(&mut random, i + 1));
            }
            let first = (seed & ((1 << SHARED_BITS) - 1)) % replies.len().max(1) as u64;
            replies.rotate_left(usize::try_from(first).unwrap_or(0));
        }
        replies.truncate(request.n);
        Ok(replies)
    }
}

#[async_trait]
impl Backend for RecordedBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        self.capabilities.check_stages(&self.name, &request.sampling)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded);
        }
        let replies = self.replies(&request)?;
        let is_of_one = replies.windows(2).all(|pair| pair[0].model == pair[1].model);
        let model = replies.first().filter(|_| is_of_one).map(|said| said.model.to_string());
        let candidates: Vec<Candidate> =
            replies.iter().enumerate().map(|(index, said)| candidate(index, &said.text, &request)).collect();
        let add = |sum: u32, message: &Message| sum.saturating_add(count(&message.content));
        let usage = Usage {
            prompt_tokens: request.messages.iter().fold(0, add),
            completion_tokens: candidates.iter().fold(0, |sum, candidate| sum.saturating_add(candidate.n_tokens)),
            ..Usage::default()
        };
        let model = model.unwrap_or_else(|| self.capabilities.model.clone());
        Ok(Completion { candidates, usage, model, backend: self.name.clone() })
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        Ok(stream_of(self.complete(request).await?))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: self.name.clone(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// Reads what was asked, by id.
fn asked(path: &Path) -> Result<HashMap<String, String>, LinesError> {
    Ok(AskedPrompt::open(path)?.into_iter().map(|prompt| (prompt.id, prompt.text)).collect())
}

/// Lists names, not all of many.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let n_more = all.len().saturating_sub(MOST_NAMED);
    let some = all.take(MOST_NAMED).collect::<Vec<_>>().join(", ");
    if n_more > 0 { format!("{some} and {n_more} more") } else { some }
}

fn candidate(index: usize, said: &str, request: &Request) -> Candidate {
    let most = usize::try_from(request.sampling.max_tokens).unwrap_or(usize::MAX);
    let length: usize = tokens(said).take(most).map(str::len).sum();
    let (mut text, mut finish_reason) = (&said[..length], FinishReason::Stop);
    if length < said.len() {
        finish_reason = FinishReason::Length;
    }
    if let Some(end) = request.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        (text, finish_reason) = (text[..end].trim_end(), FinishReason::Stop);
    }
    let text = text.to_owned();
    Candidate { index, n_tokens: count(&text), text, finish_reason, logprobs: None, mean_logprob: None }
}

fn count(text: &str) -> u32 {
    u32::try_from(tokens(text).count()).unwrap_or(u32::MAX)
}

/// Splits a text into what is counted as its tokens, each with the white space before it.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(|c: char| !c.is_whitespace())?;
        let kind = |c: char| (c.is_ascii_alphabetic(), c.is_ascii_digit());
        let first = kind(rest[start..].chars().next()?);
        let most = match first {
            (true, _) => 7,
            (_, true) => 3,
            _ => 1,
        };
        let alike = rest[start..].chars().take(most).take_while(|&c| kind(c) == first);
        let (token, tail) = rest.split_at(start + alike.map(char::len_utf8).sum::<usize>());
        rest = tail;
        Some(token)
    })
}
