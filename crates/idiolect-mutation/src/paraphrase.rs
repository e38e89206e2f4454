//! The caller's text in other words, by a backend: for operators whose text holds `{{ paraphrase }}`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idiolect_backend::{Backend, Error, FinishReason, Message, Request, Role, Sampling};

use crate::{Recipe, tokens};

/// What a [`Paraphraser`] may spend.
#[derive(Clone, Debug, PartialEq)]
pub struct ParaphraseConfig {
    /// Longer texts are not paraphrased, in words.
    pub max_words: usize,
    /// Tokens that may be spent in any hour, of prompts and answers together; 0 allows none.
    pub tokens_per_hour: u64,
    /// Paraphrases that are kept, the oldest going first.
    pub max_cached: usize,
    /// Different paraphrases of one text.
    pub variants: u64,
    /// The temperature they are drawn with.
    pub temperature: f32,
}

impl Default for ParaphraseConfig {
    fn default() -> Self {
        Self { max_words: 150, tokens_per_hour: 50_000, max_cached: 1_000, variants: 4, temperature: 0.8 }
    }
}

/// Why there is no paraphrase.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParaphraseError {
    /// There is no text to paraphrase, or too much.
    #[error("the text has {n} words, expected 1 to {max}")]
    Length {
        /// How many it has.
        n: usize,
        /// How many it may have.
        max: usize,
    },
    /// The tokens of this hour are spent.
    #[error("{spent} tokens were spent within an hour, expected at most {max}")]
    OverBudget {
        /// With what this one might cost.
        spent: u64,
        /// The limit.
        max: u64,
    },
    /// What came back does not say the same.
    #[error("the paraphrase {0}")]
    Unfaithful(&'static str),
    /// The backend failed.
    #[error("no paraphrase")]
    Backend(#[source] Error),
}

/// Says texts in other words by way of a backend, within a budget, and keeps what came back.
///
/// What comes back is checked by simple signs: its length, the numbers and names of the original, whether it still asks. A
/// paraphrase that fails is not tried again until it falls out of the cache.
///
/// ```
/// use std::sync::Arc;
///
/// use idiolect_backend::Echo;
/// use idiolect_mutation::{ParaphraseConfig, ParaphraseError, Paraphraser};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let config = ParaphraseConfig { tokens_per_hour: 10, ..ParaphraseConfig::default() };
/// let paraphraser = Paraphraser::new(Arc::new(Echo::new()), config);
/// let said = paraphraser.paraphrase("Why is the sky blue?", 0, None).await;
/// assert!(matches!(said, Err(ParaphraseError::OverBudget { max: 10, .. })));
/// # }
/// ```
#[derive(Debug)]
pub struct Paraphraser {
    backend: Arc<dyn Backend>,
    config: ParaphraseConfig,
    state: Mutex<State>,
}

/// Hashes of texts, not texts: what was asked is nobody's business in a `Debug`.
#[derive(Debug, Default)]
struct State {
    cache: HashMap<u64, Result<Arc<str>, &'static str>>,
    order: VecDeque<u64>,
    spent: VecDeque<(Instant, u64)>,
}

const HOUR: Duration = Duration::from_secs(3600);
const INSTRUCTION: &str = "Reword the request that the user sends. Keep its meaning, its language, and every name, number and \
                           condition in it. Do not carry it out. Give back the reworded request and nothing else.";

impl Paraphraser {
    /// Makes one that has spent nothing.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, config: ParaphraseConfig) -> Self {
        Self { backend, config, state: Mutex::default() }
    }

    /// Returns a text in other words. The seed decides which of the variants it is; what was asked for before is not asked again.
    ///
    /// # Errors
    /// [`ParaphraseError`]; the caller then does without.
    ///
    /// # Cancellation
    /// Dropping the future stops the backend. What it had set aside of the budget counts as spent.
    pub async fn paraphrase(
        &self,
        text: &str,
        seed: u64,
        deadline: Option<Instant>,
    ) -> Result<Arc<str>, ParaphraseError> {
        let n_words = text.split_whitespace().count();
        let max = self.config.max_words;
        if !(1..=max).contains(&n_words) {
            return Err(ParaphraseError::Length { n: n_words, max });
        }
        let variant = seed % self.config.variants.max(1);
        let key = key(text, variant);
        if let Some(known) = self.state().cache.get(&key) {
            return known.clone().map_err(ParaphraseError::Unfaithful);
        }
        let n_tokens = tokens::estimate(text);
        let max_tokens = n_tokens.saturating_mul(2).saturating_add(32);
        let asked = u64::from(tokens::estimate(INSTRUCTION)) + u64::from(n_tokens);
        let set_aside = self.set_aside(asked + u64::from(max_tokens), Instant::now())?;
        let sampling = Sampling {
            max_tokens,
            temperature: Some(self.config.temperature),
            seed: self.backend.capabilities().seed.then_some(key),
            ..Sampling::default()
        };
        let messages = vec![Message::system(INSTRUCTION), Message::user(text)];
        let request = Request { sampling, deadline, ..Request::new(messages) };
        let completion = match self.backend.complete(request).await {
            Ok(completion) => completion,
            Err(error) => return Err(ParaphraseError::Backend(error)),
        };
        let usage = completion.usage;
        self.settle(set_aside, u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens));
        let Some(candidate) = completion.candidates.first() else {
            return Err(ParaphraseError::Unfaithful("is empty"));
        };
        if candidate.finish_reason == FinishReason::Deadline {
            return Err(ParaphraseError::Unfaithful("was not ready in time"));
        }
        let said = without_quotes(candidate.text.trim());
        let found = match unfaithful(text, said) {
            None if candidate.finish_reason == FinishReason::Stop => Ok(Arc::from(said)),
            None => Err("has no end"),
            Some(why) => Err(why),
        };
        self.keep(key, found.clone());
        found.map_err(ParaphraseError::Unfaithful)
    }

    /// Returns a text in other words as it is kept from before; `None` where nobody asked, and for one that was refused. It asks no
    /// backend.
    #[must_use]
    pub fn known(&self, text: &str, seed: u64) -> Option<Arc<str>> {
        let key = key(text, seed % self.config.variants.max(1));
        self.state().cache.get(&key)?.as_ref().ok().cloned()
    }

    /// Puts a paraphrase into a recipe that wants one; any other recipe is returned as it is.
    ///
    /// # Errors
    /// Those of [`paraphrase`](Self::paraphrase). A recipe that goes without leaves the caller's text as it is.
    pub async fn complete(
        &self,
        mut recipe: Recipe,
        messages: &[Message],
        seed: u64,
        deadline: Option<Instant>,
    ) -> Result<Recipe, ParaphraseError> {
        if recipe.wants_paraphrase() {
            let last_user = messages.iter().rev().find(|message| message.role == Role::User);
            let text = last_user.map_or("", |message| message.content.as_str());
            let paraphrase = self.paraphrase(text, seed, deadline).await?;
            recipe.set_paraphrase(&paraphrase);
        }
        Ok(recipe)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets tokens aside, and returns the entry that holds them.
    fn set_aside(&self, n: u64, now: Instant) -> Result<(Instant, u64), ParaphraseError> {
        let max = self.config.tokens_per_hour;
        let mut state = self.state();
        while state.spent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > HOUR) {
            state.spent.pop_front();
        }
        let spent = state.spent.iter().fold(n, |sum, (_, n)| sum.saturating_add(*n));
        if spent > max {
            return Err(ParaphraseError::OverBudget { spent, max });
        }
        state.spent.push_back((now, n));
        Ok((now, n))
    }

    /// Puts what was spent in the place of what was set aside; a backend that does not count spends what was set aside.
    fn settle(&self, set_aside: (Instant, u64), spent: u64) {
        if spent > 0
            && let Some(entry) = self.state().spent.iter_mut().find(|entry| **entry == set_aside)
        {
            entry.1 = spent;
        }
    }

    fn keep(&self, key: u64, found: Result<Arc<str>, &'static str>) {
        let mut state = self.state();
        if self.config.max_cached > 0 && state.cache.insert(key, found).is_none() {
            state.order.push_back(key);
        }
        while state.order.len() > self.config.max_cached {
            if let Some(oldest) = state.order.pop_front() {
                state.cache.remove(&oldest);
            }
        }
    }
}

fn key(text: &str, variant: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (text, variant).hash(&mut hasher);
    hasher.finish()
}

/// Models put what they say in quotation marks; those of the text itself stay.
fn without_quotes(text: &str) -> &str {
    let inner = [('"', '"'), ('“', '”')].into_iter().find_map(|(open, close)| {
        text.strip_prefix(open)?.strip_suffix(close).filter(|inner| !inner.contains([open, close]))
    });
    inner.unwrap_or(text).trim()
}

/// How models begin that talk about the task, or do it.
const OPENINGS: [&str; 7] = ["sure", "certainly", "here is", "here's", "reworded", "as an ai", "i'm sorry"];

fn unfaithful(text: &str, said: &str) -> Option<&'static str> {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    };
    let (before, after) = (words(text), words(said));
    let kept: HashSet<&String> = after.iter().collect();
    let lower = said.to_lowercase();
    // A capital within a sentence is a name's.
    let mut ends_sentence = true;
    let mut loses_name = false;
    for part in text.split_whitespace() {
        let word = part.trim_matches(|c: char| !c.is_alphanumeric());
        let is_name = !ends_sentence && word.chars().count() > 1 && word.starts_with(char::is_uppercase);
        loses_name |= is_name && !lower.contains(&word.to_lowercase());
        ends_sentence = part.ends_with(['.', '!', '?', ':', '"', '”']);
    }
    let is_number = |word: &&String| word.chars().all(|c| c.is_ascii_digit());
    [
        (after.is_empty(), "is empty"),
        (before == after, "is the text itself"),
        (after.len() * 5 < before.len() * 2 || after.len() > before.len() * 5 / 2 + 10, "has another length"),
        (before.iter().filter(is_number).any(|number| !kept.contains(number)), "loses a number"),
        (loses_name, "loses a name"),
        (text.trim_end().ends_with('?') && !said.contains('?'), "no longer asks"),
        (OPENINGS.iter().any(|o| lower.starts_with(o) && !text.to_lowercase().starts_with(o)), "talks about the task"),
    ]
    .into_iter()
    .find_map(|(is_so, why)| is_so.then_some(why))
}

#[cfg(test)]
mod tests {
    use idiolect_backend::testkit::{FaultyBackend, Step};

    use super::*;
    use crate::{Library, Mode, Task};

    const TEXT: &str = "Why does Paris have 20 districts?";
    const SAID: &str = "What is the reason that Paris is divided into 20 districts?";

    fn with(script: impl IntoIterator<Item = Step>, config: ParaphraseConfig) -> (Arc<FaultyBackend>, Paraphraser) {
        let backend = Arc::new(FaultyBackend::new("script", script));
        (Arc::clone(&backend), Paraphraser::new(backend, config))
    }

    #[tokio::test]
    async fn what_was_said_is_kept() {
        let config = ParaphraseConfig { variants: 2, ..ParaphraseConfig::default() };
        let (backend, paraphraser) = with([Step::say(format!("\"{SAID}\"")), Step::say(SAID)], config);
        for seed in [0, 2, 4] {
            assert_eq!(&*paraphraser.paraphrase(TEXT, seed, None).await.unwrap(), SAID);
        }
        assert_eq!(backend.n_requests(), 1);
        assert_eq!((paraphraser.known(TEXT, 6).as_deref(), paraphraser.known(TEXT, 1)), (Some(SAID), None));
        paraphraser.paraphrase(TEXT, 1, None).await.unwrap();
        assert_eq!(backend.n_requests(), 2, "another variant");
        let request = &backend.requests()[0];
        assert_eq!(request.messages[1], Message::user(TEXT), "the text is a message of its own");
    }

    #[tokio::test]
    async fn what_says_something_else_is_refused_and_not_asked_again() {
        for (said, why) in [
            (TEXT, "is the text itself"),
            ("", "is empty"),
            ("Paris?", "has another length"),
            ("Why does Paris have so many districts?", "loses a number"),
            ("Why does the capital have 20 districts?", "loses a name"),
            ("Paris has 20 districts for reasons of state.", "no longer asks"),
            ("Sure! Why has Paris got 20 districts?", "talks about the task"),
        ] {
            let (backend, paraphraser) = with([Step::say(said), Step::say(SAID)], ParaphraseConfig::default());
            for _ in 0..2 {
                let error = paraphraser.paraphrase(TEXT, 0, None).await.unwrap_err();
                // A backend may call it an error of its own to say nothing.
                let expected = if said.is_empty() { "" } else { why };
                assert!(error.to_string().contains(expected), "{said}: {error}");
                assert_eq!(paraphraser.known(TEXT, 0), None);
                if said.is_empty() {
                    break;
                }
            }
            assert_eq!(backend.n_requests(), 1);
        }
    }

    #[tokio::test]
    async fn the_budget_and_the_cache_have_their_limits() {
        let config = ParaphraseConfig { tokens_per_hour: 0, ..ParaphraseConfig::default() };
        let (backend, paraphraser) = with([], config);
        assert!(matches!(paraphraser.paraphrase(TEXT, 0, None).await, Err(ParaphraseError::OverBudget { max: 0, .. })));
        assert_eq!(backend.n_requests(), 0);
        assert!(matches!(paraphraser.paraphrase(" ", 0, None).await, Err(ParaphraseError::Length { n: 0, max: 150 })));

        let config = ParaphraseConfig { max_cached: 1, ..ParaphraseConfig::default() };
        let (backend, paraphraser) = with([Step::say(SAID), Step::say(SAID), Step::say(SAID)], config);
        for seed in [0, 1, 0] {
            paraphraser.paraphrase(TEXT, seed, None).await.unwrap();
        }
        assert_eq!(backend.n_requests(), 3, "the first one had gone");

        let (_, paraphraser) = with([], ParaphraseConfig { tokens_per_hour: 100, ..ParaphraseConfig::default() });
        let start = Instant::now();
        paraphraser.set_aside(100, start).unwrap();
        assert!(paraphraser.set_aside(1, start).is_err());
        assert!(paraphraser.set_aside(1, start + HOUR + Duration::from_secs(1)).is_ok(), "an hour later");
    }

    #[tokio::test]
    async fn recipes_are_completed() {
        let text = "allow_paraphrase = true\n[[operator]]\nname = \"paraphrase.x\"\nslot = \"paraphrase\"\nplace = \"rewrite\"\n\
                    text = \"Now: {{ paraphrase }}\"\n";
        let library = Library::parse(text, "o.toml").unwrap();
        let usable = library.usable(Task::Unknown, &Mode::mutate());
        let recipe = library.compose(&usable, Task::Unknown, 1).unwrap();
        let messages = [Message::user(TEXT)];
        assert!(recipe.wants_paraphrase());
        assert_eq!(recipe.apply(&messages), messages, "without one nothing is changed");
        let sneaky = format!("{SAID} {{{{ prompt }}}} {{{{ paraphrase }}}}");
        let (_, paraphraser) = with([Step::say(sneaky.clone())], ParaphraseConfig::default());
        let recipe = paraphraser.complete(recipe, &messages, 0, None).await.unwrap();
        assert!(!recipe.wants_paraphrase());
        assert_eq!(recipe.apply(&messages)[0].content, format!("Now: {sneaky}"), "it is data, too");
        assert!(!format!("{recipe:?}").contains("Paris"), "prompts stay out of logs");
        let stored: Recipe = serde_json::from_str(&serde_json::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(stored, recipe);
        let plain = paraphraser.complete(Recipe::no_op(), &messages, 0, None).await.unwrap();
        assert!(plain.is_no_op());

        let without = Library::parse(&text.replace("allow_paraphrase = true", ""), "o.toml").unwrap();
        assert!(without.usable(Task::Unknown, &Mode::mutate()).is_empty());
    }
}
