//! Constraints, by way of llguidance.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::json;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::{ConstraintSpec, Vocabulary};

/// Makes parsers for a vocabulary.
pub(crate) struct Grammars(ParserFactory);

impl Grammars {
    fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let Some(end) = vocabulary.ends().first() else {
            return Err("constraint needs a token that ends the output, the model has none".to_owned());
        };
        let n = u32::try_from(vocabulary.len()).map_err(|_| "the vocabulary is too large".to_owned())?;
        // Tokens without a text are no part of any output; the marker byte keeps them out of every parser's reach.
        // So do tokens that end the output: the letters of their names must not end it early.
        let words: Vec<Vec<u8>> = (0..n)
            .map(|token| match vocabulary.bytes(token) {
                bytes if bytes.is_empty() || vocabulary.ends().contains(&token) => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("[{token}]").as_bytes()].concat(),
                bytes => bytes.to_vec(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(n, *end), &words).with_eos_tokens(vocabulary.ends());
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Self(factory))
    }
}

/// A constraint, read.
pub(crate) struct Grammar(Matcher);

impl Grammar {
    /// Reads a constraint.
    pub(crate) fn new(spec: &ConstraintSpec, vocabulary: &Vocabulary) -> Result<Self, String> {
        let grammars = vocabulary.grammars.get_or_init(|| Grammars::new(vocabulary));
        let grammars = grammars.as_ref().map_err(Clone::clone)?;
        let grammar = match spec {
            ConstraintSpec::Json => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
            ConstraintSpec::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            ConstraintSpec::Regex(regex) => TopLevelGrammar::from_regex(regex),
            ConstraintSpec::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| escape(text)).collect();
                TopLevelGrammar::from_regex(&texts.join("|"))
            }
        };
        let mut matcher = Matcher::new(grammars.0.create_parser(grammar));
        match matcher.get_error() {
            // The first line says what is wrong; the rest is where the parser was.
            Some(error) => Err(format!("constraint: {}", error.lines().next().unwrap_or_default())),
            None => {
                matcher.compute_mask_or_eos().map_err(|e| format!("constraint: {e}"))?;
                Ok(Self(matcher))
            }
        }
    }

    /// Begins an output.
    pub(crate) fn start(&self) -> Matching {
        Matching { matcher: self.0.deep_clone(), allowed: SimpleVob::new() }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

/// How far an output got in a grammar.
pub(crate) struct Matching {
    matcher: Matcher,
    allowed: SimpleVob,
}

impl Clone for Matching {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), allowed: self.allowed.clone() }
    }
}

impl Matching {
    /// Returns the tokens that may follow.
    pub(crate) fn allowed(&mut self) -> Result<&SimpleVob, String> {
        self.allowed = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        Ok(&self.allowed)
    }

    /// Goes on by a token that was allowed.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| e.to_string())
    }
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Matching")
    }
}

/// Writes a text as the regular expression that matches it alone.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
