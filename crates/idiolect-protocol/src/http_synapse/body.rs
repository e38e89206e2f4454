use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::{BodyHash, SynapseKind, SynapseSpec};
use crate::body_hash::{PyValue, verify_body_hash};
use crate::epistula::INFERENCE_TASK;
use crate::openai::{ChatError, SamplingParameters};
use crate::{Category, Prompt, PromptError, json_object};

/// A body with more fields than this is refused; real ones have about a dozen.
const MAX_FIELDS: usize = 256;
/// Most names that an availability question may hold in each map.
const MAX_NAMES: usize = 1024;

/// A request's body whose hash is the signed one.
///
/// The hash covers the messages of a prompt only: everything else could have been changed on the way.
#[derive(Clone)]
pub struct SynapseBody {
    synapse: Arc<SynapseSpec>,
    /// Name and JSON text, each name once.
    fields: Vec<(String, Bytes)>,
    roles: Vec<String>,
    messages: Vec<String>,
}

/// Prompts stay out of logs.
impl fmt::Debug for SynapseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.fields.iter().map(|(name, _)| name).collect();
        f.debug_struct("SynapseBody").field("synapse", &self.synapse.name()).field("fields", &fields).finish()
    }
}

/// Why a body is refused. Holds nothing of it but field names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SynapseBodyError {
    /// Not UTF-8.
    #[error("body is not UTF-8")]
    NotUtf8,
    /// Not a JSON object; holds the place.
    #[error("body is not a JSON object (line {line}, column {column})")]
    NotJson {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Too many fields.
    #[error("body has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A field that must be there is missing.
    #[error("field {0:?} is missing")]
    Missing(String),
    /// A field has another type than expected.
    #[error("field {name:?} is not {expected}")]
    WrongType {
        /// The field.
        name: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A sampling parameter has another type, or a value outside its range.
    #[error(transparent)]
    Sampling(#[from] ChatError),
    /// The body is not the one that was signed.
    #[error("body does not match its signed hash")]
    HashMismatch,
}

impl SynapseBodyError {
    /// Returns the category.
    #[must_use]
    pub const fn category(&self) -> Category {
        match self {
            Self::HashMismatch => Category::BodyMismatch,
            _ => Category::Malformed,
        }
    }
}

impl SynapseBody {
    /// Reads a body and compares it with its signed hash.
    ///
    /// Fields that nobody knows are kept and sent back, as clients expect. A field that comes twice counts the last
    /// time, as in Python.
    ///
    /// # Errors
    /// [`SynapseBodyError`].
    pub fn parse(synapse: &Arc<SynapseSpec>, claimed: &BodyHash, body: Bytes) -> Result<Self, SynapseBodyError> {
        let text = std::str::from_utf8(&body).map_err(|_| SynapseBodyError::NotUtf8)?;
        let raw = json_object::fields_up_to(MAX_FIELDS, text)
            .map_err(|err| SynapseBodyError::NotJson { line: err.line(), column: err.column() })?
            .ok_or(SynapseBodyError::TooManyFields)?;
        let mut fields: Vec<(String, Bytes)> = Vec::with_capacity(raw.len());
        for (name, value) in raw {
            let value = body.slice_ref(value.get().as_bytes());
            match fields.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => fields.push((name, value)),
            }
        }
        let mut parsed = Self { synapse: Arc::clone(synapse), fields, roles: Vec::new(), messages: Vec::new() };
        if let Some(missing) = synapse.required.iter().find(|name| parsed.json(name).is_none()) {
            return Err(SynapseBodyError::Missing(missing.clone()));
        }
        if synapse.kind() == SynapseKind::Prompt {
            parsed.roles = parsed.read("roles", "a list of texts")?;
            parsed.messages = parsed.read("messages", "a list of texts")?;
        }
        if parsed.has_hash(claimed)? { Ok(parsed) } else { Err(SynapseBodyError::HashMismatch) }
    }

    fn has_hash(&self, claimed: &BodyHash) -> Result<bool, SynapseBodyError> {
        let Some(claimed) = claimed.as_deref() else { return Ok(false) };
        let hashed = &self.synapse.hashed;
        if self.synapse.kind() == SynapseKind::Prompt && *hashed == ["messages"] {
            return Ok(verify_body_hash(claimed, &[self.messages.as_slice()]));
        }
        let values = hashed
            .iter()
            .map(|name| {
                let text = self.json(name).ok_or_else(|| SynapseBodyError::Missing(name.clone()))?;
                let wrong =
                    || SynapseBodyError::WrongType { name: name.clone(), expected: "a value that can be hashed" };
                PyValue::from_json(text).map_err(|_| wrong())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(verify_body_hash(claimed, &values.iter().collect::<Vec<_>>()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str, expected: &'static str) -> Result<T, SynapseBodyError> {
        let wrong = || SynapseBodyError::WrongType { name: name.into(), expected };
        let text = self.json(name).ok_or_else(|| SynapseBodyError::Missing(name.into()))?;
        serde_json::from_str(text).map_err(|_| wrong())
    }

    /// Returns the synapse it is a body of.
    #[must_use]
    pub fn synapse(&self) -> &SynapseSpec {
        &self.synapse
    }

    /// Returns a field's JSON text.
    #[must_use]
    pub fn json(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns a field that is a text; `None` also where it is something else.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.json(name)?).ok()
    }

    /// Returns a field that is an integer; `None` also where it is something else.
    #[must_use]
    pub fn integer(&self, name: &str) -> Option<i64> {
        serde_json::from_str(self.json(name)?).ok()
    }

    /// Returns the conversation of roles and messages.
    ///
    /// # Errors
    /// [`PromptError`], for other synapses always [`PromptError::Empty`].
    pub fn prompt(&self) -> Result<Prompt, PromptError> {
        Prompt::from_parallel(&self.roles, &self.messages)
    }

    /// Says whether a prompt's lists of roles and messages are both empty: a client's trial of the way here. Nothing is asked,
    /// so the answer is an empty completion, as a reference axon's.
    #[must_use]
    pub fn asks_nothing(&self) -> bool {
        matches!(self.synapse.kind(), SynapseKind::Prompt) && self.roles.is_empty() && self.messages.is_empty()
    }

    /// Returns the sampling that the request dictates, as [`epistula::dictated`](crate::epistula::dictated) does: where it
    /// brings a seed together with `sampling_parameters`, or names an inference task.
    ///
    /// # Errors
    /// [`SynapseBodyError::WrongType`], [`SynapseBodyError::Sampling`].
    pub fn dictated(&self) -> Result<Option<SamplingParameters>, SynapseBodyError> {
        let value = |name| self.json(name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        let is_inference = self.text("task_name").is_some_and(|task| task == INFERENCE_TASK);
        let mut parameters = match value("sampling_parameters") {
            Value::Object(parameters) => parameters,
            Value::Null if is_inference => Map::new(),
            Value::Null => return Ok(None),
            _ => {
                let name = "sampling_parameters".into();
                return Err(SynapseBodyError::WrongType { name, expected: "an object" });
            }
        };
        let seed = value("seed");
        if !seed.is_null() {
            parameters.insert("seed".into(), seed);
        }
        let parameters = SamplingParameters::from_object(&parameters)?;
        Ok((is_inference || parameters.seed.is_some()).then_some(parameters))
    }

    /// Returns the names of tasks and of models that an availability question asks for.
    ///
    /// # Errors
    /// [`SynapseBodyError::WrongType`].
    pub fn availability(&self) -> Result<(Vec<String>, Vec<String>), SynapseBodyError> {
        let names = |field: &str| {
            if self.json(field).is_none() {
                return Ok(Vec::new());
            }
            let map: BTreeMap<String, IgnoredAny> = self.read(field, "an object")?;
            if map.len() > MAX_NAMES {
                return Err(SynapseBodyError::WrongType {
                    name: field.into(),
                    expected: "an object of at most 1024 names",
                });
            }
            Ok(map.into_keys().collect())
        };
        Ok((names("task_availabilities")?, names("llm_model_availabilities")?))
    }

    /// Returns the fields in their order, for sending them back.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Synapses;
    use super::*;
    use crate::body_hash::{EMPTY_BODY_HASH, body_hash};

    fn parse_as(synapse: &SynapseSpec, hash: Option<&str>, body: &[u8]) -> Result<SynapseBody, SynapseBodyError> {
        let hash = BodyHash::for_tests(hash);
        SynapseBody::parse(&Arc::new(synapse.clone()), &hash, Bytes::copy_from_slice(body))
    }

    fn parse(messages: &[&str], body: &str) -> Result<SynapseBody, SynapseBodyError> {
        let messages: Vec<_> = messages.iter().map(|text| (*text).to_owned()).collect();
        let hash = body_hash(&[messages.as_slice()]);
        parse_as(Synapses::default().find("/Prompting").unwrap(), Some(&hash), body.as_bytes())
    }

    #[test]
    fn extra_fields_are_kept_and_known_ones_read() {
        let body = r#"{"task_name": "qa", "seed": 7, "target_model": null, "roles": ["user"], "messages": ["hi"]}"#;
        let body = parse(&["hi"], body).unwrap();
        assert_eq!(body.text("task_name").as_deref(), Some("qa"));
        assert_eq!(body.integer("seed"), Some(7));
        assert_eq!(body.text("target_model"), None);
        assert_eq!(body.text("seed"), None);
        assert_eq!(body.prompt().unwrap().messages().len(), 1);
        assert!(!format!("{body:?}").contains("hi"));
    }

    #[test]
    fn a_repeated_field_counts_the_last_time() {
        let body = parse(&["b"], r#"{"messages": ["a"], "roles": ["user"], "messages": ["b"]}"#).unwrap();
        assert_eq!(body.prompt().unwrap().messages()[0].content, "b");
        assert!(parse(&["a"], r#"{"messages": ["a"], "roles": ["user"], "messages": ["b"]}"#).is_err());
    }

    #[test]
    fn bad_bodies_are_explained() {
        let check = |body: &str, expected: &str| {
            let error = parse(&["hi"], body).unwrap_err();
            assert!(error.to_string().contains(expected), "{body}: {error}");
            assert_eq!(error.category(), Category::Malformed);
        };
        check("", "not a JSON object");
        check("[]", "not a JSON object");
        check("{\"roles\": [\"user\"], \"messages\": [\"hi\"]} x", "not a JSON object");
        check("{\"messages\": [\"hi\"]}", "\"roles\" is missing");
        check("{\"roles\": [\"user\"]}", "\"messages\" is missing");
        check("{\"roles\": [\"user\"], \"messages\": \"hi\"}", "\"messages\" is not a list of texts");
        check("{\"roles\": [1], \"messages\": [\"hi\"]}", "\"roles\" is not a list of texts");
        check("{\"roles\": [\"user\"], \"messages\": [\"\\ud800\"]}", "\"messages\" is not a list of texts");
        let many: String = (0..300).map(|i| format!("\"f{i}\": 0, ")).collect();
        check(&format!("{{{many}\"roles\": [\"user\"], \"messages\": [\"hi\"]}}"), "256 fields");
        let prompting = Synapses::default();
        let prompting = prompting.find("/Prompting").unwrap();
        assert_eq!(parse_as(prompting, Some("x"), b"{\"a\": \"\xff\"}").unwrap_err(), SynapseBodyError::NotUtf8);
    }

    #[test]
    fn another_body_than_the_signed_one_is_refused() {
        let body = r#"{"roles": ["user"], "messages": ["hi!"]}"#;
        let error = parse(&["hi"], body).unwrap_err();
        assert_eq!((error.category(), error), (Category::BodyMismatch, SynapseBodyError::HashMismatch));
        let synapses = Synapses::default();
        let prompting = synapses.find("/Prompting").unwrap();
        for hash in [None, Some("None"), Some(EMPTY_BODY_HASH)] {
            assert_eq!(parse_as(prompting, hash, body.as_bytes()).unwrap_err(), SynapseBodyError::HashMismatch);
        }
    }

    #[test]
    fn bad_prompts_are_told_apart_from_bad_bodies() {
        assert_eq!(parse(&[], r#"{"roles": [], "messages": []}"#).unwrap().prompt(), Err(PromptError::Empty));
        assert_eq!(
            parse(&[" "], r#"{"roles": ["user"], "messages": [" "]}"#).unwrap().prompt(),
            Err(PromptError::Empty)
        );
        let unknown = parse(&["hi"], r#"{"roles": ["tool"], "messages": ["hi"]}"#).unwrap().prompt();
        assert_eq!(unknown, Err(PromptError::UnknownRole("tool".into())));
        assert!(parse(&["hi"], r#"{"roles": [], "messages": ["hi"]}"#).unwrap().prompt().is_err());
    }

    #[test]
    fn other_synapses_hash_the_fields_they_name_in_order() {
        let ranking = SynapseSpec::custom("Ranking").hashed(["query", "limits"]).required(["query"]);
        let values = [PyValue::Str("why".into()), PyValue::from_json("{\"a\": [1, 2.5, true, null]}").unwrap()];
        let hash = body_hash(&values.iter().collect::<Vec<_>>());
        let body = br#"{"limits": {"a": [1, 2.5, true, null]}, "query": "why"}"#;
        assert!(parse_as(&ranking, Some(&hash), body).is_ok());
        assert!(parse_as(&ranking.clone().hashed(["limits", "query"]), Some(&hash), body).is_err());
        let error = parse_as(&ranking, Some(&hash), br#"{"query": "why"}"#).unwrap_err();
        assert_eq!(error, SynapseBodyError::Missing("limits".into()));
    }

    #[test]
    fn availability_questions_give_names() {
        let synapses = Synapses::default();
        let spec = synapses.find("/AvailabilitySynapse").unwrap();
        let body = br#"{"task_availabilities": {"qa": false, "web": true}, "llm_model_availabilities": {"m": null}}"#;
        let body = parse_as(spec, Some(EMPTY_BODY_HASH), body).unwrap();
        assert_eq!(body.availability().unwrap(), (vec!["qa".into(), "web".into()], vec!["m".into()]));
        let body = parse_as(spec, Some(EMPTY_BODY_HASH), b"{}").unwrap();
        assert_eq!(body.availability().unwrap(), (vec![], vec![]));
        let body = parse_as(spec, Some(EMPTY_BODY_HASH), br#"{"task_availabilities": []}"#).unwrap();
        assert!(body.availability().is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            for spec in Synapses::default().by_name.values() {
                let _ = parse_as(spec, Some(EMPTY_BODY_HASH), &body);
            }
        }

        #[test]
        fn any_json_like_text_is_survived(body in "[\\[\\]{}\",:0-9a-z\\\\ue.+-]{0,120}") {
            let body = format!("{{\"roles\": [\"user\"], \"messages\": {body}}}");
            let _ = parse(&["hi"], &body).map(|body| body.prompt());
        }
    }
}
