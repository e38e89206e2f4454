//! Constraints, by way of llguidance.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

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
                bytes if bytes.is_empty() || vocabulary.ends().contains(&token) => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("[{token}]").as_bytes()].concat()
                }
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{Ban, Chain, Constraint, DrawError, Sampler, Stage, Stream, Temperature, TopK};

    /// Every byte as a token, some words, tokens without text, and two that end the output.
    fn vocabulary() -> Arc<Vocabulary> {
        let mut tokens: Vec<Vec<u8>> = (0u8..=255).map(|byte| vec![byte]).collect();
        let words =
            ["yes", "no", "{\"", "\":", "name", "true", "12", "age", "\"}", ", ", "yes or no", "", "", "</s>", "<end>"];
        tokens.extend(words.map(|word| word.as_bytes().to_vec()));
        let n = tokens.len() as u32;
        Arc::new(Vocabulary::new(tokens, &[n - 1, n - 2]))
    }

    fn constraint(shape: ConstraintSpec) -> Stage {
        Stage::Constraint(Constraint { shape })
    }

    /// Draws from flat logits until the end.
    fn text(stages: &[Stage], candidate: u64) -> Result<String, DrawError> {
        let vocabulary = vocabulary();
        let chain = Arc::new(Chain::new(stages, Some(&vocabulary)).unwrap());
        let mut sampler = Sampler::new(&chain, Stream { seed: 4, request: 0, candidate }, &[]);
        // Ends and closing signs are a little likelier, so that texts come to an end.
        let mut logits = vec![0.0; vocabulary.len()];
        for likely in vocabulary.ends().iter().copied().chain(b"\"}]0".map(u32::from)) {
            logits[likely as usize] = 4.0;
        }
        let mut text = Vec::new();
        for _ in 0..400 {
            let token = sampler.draw(&logits, &[])?.token;
            if vocabulary.ends().contains(&token) {
                return Ok(String::from_utf8(text).unwrap());
            }
            text.extend_from_slice(vocabulary.bytes(token));
        }
        panic!("no end of {}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn choices_are_made() {
        let choice = ConstraintSpec::Choice(vec!["yes".into(), "no".into(), "a+b (c|d) \\ \"q\" / é".into()]);
        let mut seen: Vec<String> = (0..60).map(|i| text(&[constraint(choice.clone())], i).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, ["a+b (c|d) \\ \"q\" / é", "no", "yes"]);
    }

    #[test]
    fn expressions_are_matched_from_beginning_to_end() {
        for i in 0..20 {
            let text = text(&[constraint(ConstraintSpec::Regex("[0-9]{2,4}(ab|/)?".into()))], i).unwrap();
            let digits = text.trim_end_matches("ab").trim_end_matches('/');
            assert!((2..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        }
    }

    #[test]
    fn schemas_are_satisfied() {
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name", "age"],
            "additionalProperties": false,
        });
        for i in 0..20 {
            let text = text(&[constraint(ConstraintSpec::JsonSchema(schema.clone()))], i).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 5), "{text}");
            assert!(value["age"].is_i64() || value["age"].is_u64() || value["age"].is_number(), "{text}");
            assert_eq!(value.as_object().map(serde_json::Map::len), Some(2), "{text}");
        }
    }

    #[test]
    fn any_object_will_do() {
        let heat = Stage::Temperature(Temperature { temperature: 0.7, ..Temperature::default() });
        for i in 0..10 {
            let text = text(&[constraint(ConstraintSpec::Json), Stage::TopK(TopK { k: 30 }), heat.clone()], i).unwrap();
            assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let vocabulary = vocabulary();
        for shape in [
            ConstraintSpec::Regex("(".into()),
            ConstraintSpec::Regex("a(?=b)".into()),
            ConstraintSpec::JsonSchema(json!({"type": "nonsense"})),
        ] {
            let error = Chain::new(&[constraint(shape.clone())], Some(&vocabulary)).unwrap_err();
            assert!(error.to_string().starts_with("constraint: "), "{shape:?}: {error}");
        }
        let endless = Arc::new(Vocabulary::new(["a", "b"], &[]));
        let error = Chain::new(&[constraint(ConstraintSpec::Json)], Some(&endless)).unwrap_err();
        assert!(error.to_string().contains("needs a token that ends"), "{error}");
    }

    #[test]
    fn a_ban_and_a_constraint_can_leave_nothing() {
        let ban = Stage::Ban(Ban { phrases: vec!["yes".into()], ..Ban::default() });
        let yes = constraint(ConstraintSpec::Choice(vec!["yes".into()]));
        assert_eq!(text(&[ban, yes], 0), Err(DrawError::NothingLeft));
    }

    #[test]
    fn a_constrained_sampler_forks_apart() {
        let vocabulary = vocabulary();
        let choice = constraint(ConstraintSpec::Choice(vec!["ab".into(), "cd".into()]));
        let chain = Arc::new(Chain::new(&[choice, Stage::Greedy {}], Some(&vocabulary)).unwrap());
        let mut a = Sampler::new(&chain, Stream::default(), &[]);
        let mut logits = vec![0.0; vocabulary.len()];
        let mut b = a.clone();
        logits[usize::from(b'a')] = 1.0;
        assert_eq!(a.draw(&logits, &[]).unwrap().token, u32::from(b'a'));
        logits[usize::from(b'c')] = 2.0;
        assert_eq!(b.draw(&logits, &[]).unwrap().token, u32::from(b'c'));
        assert_eq!(a.draw(&logits, &[]).unwrap().token, u32::from(b'b'));
        assert_eq!(b.draw(&logits, &[]).unwrap().token, u32::from(b'd'));
    }
}
