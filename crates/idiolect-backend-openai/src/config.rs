//! What to ask, where, and how patiently.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use idiolect_backend::{Backoff, Error, Prices};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// What kind of server is asked. It decides which fields a request may have beyond OpenAI's own.
///
/// | | `n` at once | extra sampling fields | log-probabilities | `score` | stages of a chain |
/// | --- | --- | --- | --- | --- | --- |
/// | `openai` | yes | none | yes | no | temperature, top-p, penalties by count, logit bias, JSON |
/// | `vllm` | yes | `top_k`, `min_p`, `repetition_penalty`, `min_tokens` | yes | yes | those, top-k, min-p, repetition, banned tokens |
/// | `tgi` | no | none | yes | no | temperature, top-p, penalties by count |
/// | `ollama` | no | none | no | no | those, JSON |
/// | `llamacpp` | newer ones | `top_k`, `min_p`, `repeat_penalty`, `ignore_eos` | yes | no | all but banned phrases and regular expressions, in any order |
/// | `openrouter` | no | `top_k`, `min_p`, `repetition_penalty` | no | no | temperature, top-k, top-p, min-p, penalties, logit bias |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// OpenAI itself, and anything that is strict about unknown fields.
    #[default]
    OpenAi,
    /// vLLM.
    Vllm,
    /// Text Generation Inference.
    Tgi,
    /// Ollama.
    Ollama,
    /// The server of llama.cpp.
    LlamaCpp,
    /// OpenRouter.
    OpenRouter,
}

impl Flavour {
    const ALL: [(Self, &str); 6] = [
        (Self::OpenAi, "openai"),
        (Self::Vllm, "vllm"),
        (Self::Tgi, "tgi"),
        (Self::Ollama, "ollama"),
        (Self::LlamaCpp, "llamacpp"),
        (Self::OpenRouter, "openrouter"),
    ];

    pub(crate) const fn draws_candidates_at_once(self) -> bool {
        matches!(self, Self::OpenAi | Self::Vllm | Self::LlamaCpp)
    }

    pub(crate) const fn gives_logprobs(self) -> bool {
        matches!(self, Self::OpenAi | Self::Vllm | Self::Tgi | Self::LlamaCpp)
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(flavour, _)| flavour == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Flavour {
    type Err = Error;

    /// Parses a flavour by name.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for any other name.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(flavour, _)| *flavour).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            Error::InvalidRequest(format!("unknown flavour {name:?}, expected one of {}", names.join(", ")))
        })
    }
}

/// How several candidates are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// As the flavour can; and where a server leaves `n` out of account, by one request each from then on.
    #[default]
    Auto,
    /// By `n`, always. Servers that ignore it give one candidate.
    AtOnce,
    /// By one request each, always, with seeds `seed`, `seed + 1`, and so on.
    OneByOne,
}

/// Which field limits the length of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthField {
    /// `max_tokens`, which every server knows and OpenAI's newer models refuse.
    MaxTokens,
    /// `max_completion_tokens`.
    MaxCompletionTokens,
}

/// Where the API key comes from. It is read once, when the backend is made, and never shown or logged.
#[derive(Clone, Debug, Default)]
pub enum KeySource {
    /// The server needs none.
    #[default]
    None,
    /// This environment variable.
    Env(String),
    /// The first line of this file.
    File(PathBuf),
    /// The key itself.
    Value(SecretString),
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when the variable is not set, the file cannot be read, or the key is empty or holds
    /// characters that a header cannot. The message names the place, never the key.
    pub fn read(&self) -> Result<Option<SecretString>, Error> {
        let (key, place) = match self {
            Self::None => return Ok(None),
            Self::Env(name) => {
                let key = std::env::var(name).map_err(|e| unreadable(&format!("environment variable {name}"), &e))?;
                (key, format!("environment variable {name}"))
            }
            Self::File(path) => {
                let place = format!("file {}", path.display());
                let text = std::fs::read_to_string(path).map_err(|e| unreadable(&place, &e))?;
                (text.lines().next().unwrap_or_default().to_owned(), place)
            }
            Self::Value(key) => (key.expose_secret().to_owned(), "configuration".to_owned()),
        };
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::InvalidRequest(format!("api key from {place} is empty or not plain text")));
        }
        Ok(Some(SecretString::from(key.to_owned())))
    }
}

fn unreadable(place: &str, error: &dyn fmt::Display) -> Error {
    Error::InvalidRequest(format!("api key cannot be read from {place}: {error}"))
}

/// How often a request is tried, and when.
///
/// Only what may go better is tried again: no connection, 408, 409, 425, 429, 5xx, a server that fails or falls silent
/// before its first text. Nothing is tried again when the pause would outlast the request's deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryConfig {
    /// Tries after the first.
    pub num_retries: u32,
    /// The pause before each.
    pub backoff: Backoff,
    /// Longest `Retry-After` that is waited for; a longer one ends the tries at once.
    pub max_retry_after: Duration,
}

impl Default for RetryConfig {
    /// Two more tries, after about half a second and a second; `Retry-After` up to ten.
    fn default() -> Self {
        Self { num_retries: 2, backoff: Backoff::default(), max_retry_after: Duration::from_secs(10) }
    }
}

/// How long each part of an exchange may take. The request's deadline counts as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From the request to the first item of a streamed answer.
    pub first_byte: Duration,
    /// Between two items of a streamed answer.
    pub idle: Duration,
    /// For a whole answer that is not streamed, for embeddings and for scores.
    pub whole: Duration,
}

impl Default for Timeouts {
    /// 3, 20, 10 and 120 seconds.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(20),
            idle: Duration::from_secs(10),
            whole: Duration::from_secs(120),
        }
    }
}

/// An address of a server, and how to speak with it. Shared by [`OpenAiConfig`] and
/// [`OpenAiEmbedderConfig`](crate::OpenAiEmbedderConfig).
#[derive(Clone)]
pub struct ServerConfig {
    /// Where the API begins, up to `/v1` as a rule.
    pub base_url: String,
    /// Where the key comes from.
    pub key: KeySource,
    /// Sent as `OpenAI-Organization`.
    pub organization: Option<String>,
    /// Sent as `OpenAI-Project`.
    pub project: Option<String>,
    /// More headers for each request. Their values are kept out of `Debug`.
    pub headers: Vec<(String, String)>,
    /// A proxy to go through; `None` goes straight, whatever the environment says.
    pub proxy: Option<String>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How often things are tried.
    pub retries: RetryConfig,
    /// Most bytes of an answer that are read; a longer one fails.
    pub max_body_bytes: usize,
    /// Most exchanges with the server at the same time; further ones wait their turn.
    pub max_parallel_requests: usize,
    /// How long what `GET /models` said counts as the server's health.
    pub health_ttl: Duration,
}

impl Default for ServerConfig {
    /// OpenAI without a key, 16 MiB, 32 exchanges, half a minute.
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".to_owned(),
            key: KeySource::None,
            organization: None,
            project: None,
            headers: Vec::new(),
            proxy: None,
            timeouts: Timeouts::default(),
            retries: RetryConfig::default(),
            max_body_bytes: 16 << 20,
            max_parallel_requests: 32,
            health_ttl: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("ServerConfig")
            .field("base_url", &without_credentials(&self.base_url))
            .field("key", &self.key)
            .field("headers", &headers)
            .field("timeouts", &self.timeouts)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// Cuts a user name and password out of an address.
fn without_credentials(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}[redacted]{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

/// A model on an OpenAI-shaped server.
#[derive(Clone, Debug)]
pub struct OpenAiConfig {
    /// The backend's name.
    pub name: String,
    /// The model that is asked.
    pub model: String,
    /// Other models of the server that a request may name. A name that is not here is ignored: callers should not
    /// choose what the operator pays for.
    pub models: Vec<String>,
    /// What kind of server it is.
    pub flavour: Flavour,
    /// Where it is.
    pub server: ServerConfig,
    /// How several candidates are asked for.
    pub candidates: Candidates,
    /// Which field limits the length; `None` leaves it to the flavour (`max_completion_tokens` for OpenAI alone).
    pub length_field: Option<LengthField>,
    /// The model's context, where known.
    pub context_tokens: Option<u32>,
    /// Whether the server keeps a seed to the letter. Most say "best effort", so it has to be said here.
    pub seed: bool,
    /// Whether it gives log-probabilities; `None` leaves it to the flavour.
    pub logprobs: Option<bool>,
    /// Family of the model, where known.
    pub family: Option<String>,
    /// What tokens cost; `None` is free.
    pub prices: Option<Prices>,
    /// More fields for each request, over everything else.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl OpenAiConfig {
    /// Asks this model, with everything else at its default.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            name: "openai".to_owned(),
            model: model.into(),
            models: Vec::new(),
            flavour: Flavour::default(),
            server: ServerConfig::default(),
            candidates: Candidates::default(),
            length_field: None,
            context_tokens: None,
            seed: false,
            logprobs: None,
            family: None,
            prices: None,
            extra: serde_json::Map::new(),
        }
    }

    pub(crate) fn gives_logprobs(&self) -> bool {
        self.logprobs.unwrap_or(self.flavour.gives_logprobs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_where_they_are_said_to_and_stay_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-secret \nsecond line\n").unwrap();
        let key = KeySource::File(path.clone()).read().unwrap().unwrap();
        assert_eq!(key.expose_secret(), "sk-secret");
        assert!(KeySource::None.read().unwrap().is_none());
        let value = KeySource::Value("sk-secret".to_owned().into());
        assert!(!format!("{value:?} {key:?}").contains("sk-secret"));

        std::fs::write(&path, "sk-sec\u{7}ret").unwrap();
        for bad in [KeySource::File(path), KeySource::File("no/such/file".into()), KeySource::Env("NO_SUCH_VAR".into())]
        {
            let error = bad.read().unwrap_err().to_string();
            assert!(error.contains("api key") && !error.contains("sk-sec"), "{error}");
        }
    }

    #[test]
    fn debug_hides_credentials_and_header_values() {
        let server = ServerConfig {
            base_url: "http://user:pass@host:1/v1".to_owned(),
            headers: vec![("x-token".to_owned(), "tok-secret".to_owned())],
            ..ServerConfig::default()
        };
        let shown = format!("{server:?}");
        assert!(shown.contains("http://[redacted]@host:1/v1") && shown.contains("x-token"), "{shown}");
        assert!(!shown.contains("pass") && !shown.contains("tok-secret"), "{shown}");
    }

    #[test]
    fn flavours_have_names() {
        for (flavour, name) in Flavour::ALL {
            assert_eq!((flavour.to_string().as_str(), name.parse::<Flavour>().unwrap()), (name, flavour));
            assert_eq!(serde_json::to_value(flavour).unwrap(), name);
        }
        "azure".parse::<Flavour>().unwrap_err();
    }
}
