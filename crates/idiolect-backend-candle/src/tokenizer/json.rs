//! Vocabularies as the `tokenizers` library writes them: `tokenizer.json`, with settings in files beside it.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::NormalizerWrapper;
use tokenizers::normalizers::Sequence;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::bpe::{Bpe, Space};
use super::{Kind, Literal, Model, Parts, sentencepiece};
use crate::error::LoadError;
use crate::weights::json as read_json;

/// Reads the vocabulary of a folder.
pub(super) fn read(dir: &Path) -> Result<Parts, LoadError> {
    let path = dir.join("tokenizer.json");
    let file = read_json(&path)?.ok_or_else(|| LoadError::io(&path, std::io::ErrorKind::NotFound.into()))?;
    let settings = Settings::read(dir)?;
    Reader { path: &path, file }.parts(&settings)
}

/// What the files beside `tokenizer.json` say.
struct Settings {
    bos: Option<String>,
    eos: Option<String>,
    /// Ends of a reply, by number.
    ends: Vec<u32>,
    add_bos: Option<bool>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, LoadError> {
        let tokenizer = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        // A token is named by its text, or by an object with its text.
        let token = |key: &str| {
            let value = tokenizer.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let mut ends = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let Some(file) = read_json(&dir.join(name))? else { continue };
            let eos = file.get("eos_token_id").or_else(|| file.get("text_config")?.get("eos_token_id"));
            let ids: Vec<&Value> = match eos {
                Some(Value::Array(ids)) => ids.iter().collect(),
                Some(id) => vec![id],
                None => Vec::new(),
            };
            ends.extend(ids.into_iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
        }
        Ok(Self {
            bos: token("bos_token"),
            eos: token("eos_token"),
            ends,
            add_bos: tokenizer.get("add_bos_token").and_then(Value::as_bool),
        })
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: Value,
}

/// Says whether a part of the pipeline, or one of a sequence, is of a type.
fn find<'a>(part: &'a Value, list: &str, kind: &str) -> Option<&'a Value> {
    if part.get("type").and_then(Value::as_str) == Some(kind) {
        return Some(part);
    }
    part.get(list)?.as_array()?.iter().find_map(|part| find(part, list, kind))
}

impl Reader<'_> {
    fn damaged(&self, reason: impl std::fmt::Display) -> LoadError {
        LoadError::damaged(self.path, reason)
    }

    fn parts(mut self, settings: &Settings) -> Result<Parts, LoadError> {
        let model = self.file.get("model").and_then(|model| model.get("type")?.as_str()).unwrap_or("BPE");
        if model != "BPE" {
            let what = format!("tokenizer of type {model:?}");
            return Err(LoadError::unsupported(self.path, what, "BPE"));
        }
        let added = self.added()?;
        let byte_level = find(&self.file["pre_tokenizer"], "pretokenizers", "ByteLevel").is_some()
            || find(&self.file["decoder"], "decoders", "ByteLevel").is_some();
        let (pieces, mut kinds) = self.pieces(byte_level, &added)?;
        for token in &added {
            if let Some(kind) = kinds.get_mut(token.id as usize) {
                *kind = if token.special { Kind::Control } else { Kind::UserDefined };
            }
        }
        let id = |text: &Option<String>| {
            let text = text.as_deref()?;
            let added = added.iter().find(|token| token.text == text).map(|token| token.id);
            added.or_else(|| self.file["model"]["vocab"].get(text)?.as_u64().and_then(|id| id.try_into().ok()))
        };
        let (bos, eos) = (id(&settings.bos), id(&settings.eos));
        let add_bos = settings.add_bos.unwrap_or_else(|| self.begins_with(settings.bos.as_deref()));
        let ends = settings.ends.iter().copied().filter(|id| (*id as usize) < pieces.len()).collect();
        let literals = added
            .iter()
            .map(|token| Literal {
                text: token.text.clone(),
                id: token.id,
                control: token.special,
                eats_space: token.eats_space,
            })
            .collect();

        let prefix = Prefix::of(&self.file);
        // What these would do is done here: no text can name a control token.
        for key in ["added_tokens", "post_processor", "truncation", "padding"] {
            self.file[key] = if key == "added_tokens" { json!([]) } else { Value::Null };
        }
        let text = serde_json::to_vec(&self.file).map_err(|e| self.damaged(e))?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(|e| self.damaged(e))?;
        let space = match prefix {
            Prefix::None => None,
            _ => {
                let mut without = tokenizer.clone();
                let words = tokenizer.get_pre_tokenizer().cloned().map(words_without_prefix);
                without.with_pre_tokenizer(words);
                let form = tokenizer.get_normalizer().cloned().map(form_without_prefix);
                without.with_normalizer(form).map_err(|e| self.damaged(e))?;
                Some(Space { without: Box::new(without), behind_control: prefix == Prefix::Always })
            }
        };
        let style = if byte_level { super::Style::Bytes } else { super::Style::Text };
        let bpe = Bpe::new(tokenizer, style, space);
        Ok(Parts { pieces, kinds, model: Model::Bpe(Box::new(bpe)), literals, bos, eos, add_bos, ends })
    }

    /// Returns the texts of all tokens by number, and what they are as far as their texts tell.
    fn pieces(&self, byte_level: bool, added: &[Added]) -> Result<(Vec<String>, Vec<Kind>), LoadError> {
        let vocab = self.file["model"].get("vocab").and_then(Value::as_object);
        let vocab = vocab.ok_or_else(|| self.damaged("it has no vocabulary"))?;
        let most = vocab.len() + added.len();
        let mut pieces = Vec::new();
        let known = vocab.iter().map(|(text, id)| (text.as_str(), id.as_u64()));
        let added = added.iter().map(|token| (token.text.as_str(), Some(u64::from(token.id))));
        let mut named = vec![None; most];
        for (text, id) in known.chain(added) {
            let place = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| named.get_mut(id));
            let place =
                place.ok_or_else(|| self.damaged(format!("the number of token {text:?} is beyond them all")))?;
            *place = Some(text);
        }
        while named.last().is_some_and(Option::is_none) {
            named.pop();
        }
        let unknown = self.file["model"].get("unk_token").and_then(Value::as_str);
        let mut kinds = Vec::with_capacity(named.len());
        for text in named {
            kinds.push(match text {
                None => Kind::Unused,
                Some(text) if Some(text) == unknown => Kind::Unknown,
                Some(text) if !byte_level && sentencepiece::byte(text).is_some() => Kind::Byte,
                Some(_) => Kind::Normal,
            });
            pieces.push(text.unwrap_or_default().to_owned());
        }
        Ok((pieces, kinds))
    }

    fn added(&self) -> Result<Vec<Added>, LoadError> {
        let Some(list) = self.file.get("added_tokens").and_then(Value::as_array) else { return Ok(Vec::new()) };
        list.iter()
            .map(|token| {
                let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
                let text = token.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
                let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| self.damaged(format!("token {text:?} has no number")))?;
                Ok(Added { text, id, special: flag("special"), eats_space: flag("rstrip") })
            })
            .collect()
    }

    /// Says whether the library would put the token in front of every text.
    fn begins_with(&self, bos: Option<&str>) -> bool {
        let Some(template) = find(&self.file["post_processor"], "processors", "TemplateProcessing") else {
            return false;
        };
        let first = template["single"].get(0).and_then(|part| part["SpecialToken"]["id"].as_str());
        first.is_some() && first == bos
    }
}

struct Added {
    text: String,
    id: u32,
    special: bool,
    eats_space: bool,
}

/// Where a space is put in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    None,
    /// At the beginning of the whole text.
    First,
    /// At the beginning and behind every control token.
    Always,
}

impl Prefix {
    fn of(file: &Value) -> Self {
        if find(&file["normalizer"], "normalizers", "Prepend").is_some() {
            return Self::Always;
        }
        let Some(metaspace) = find(&file["pre_tokenizer"], "pretokenizers", "Metaspace") else { return Self::None };
        match metaspace.get("prepend_scheme").and_then(Value::as_str) {
            Some("first") => Self::First,
            Some("never") => Self::None,
            Some(_) => Self::Always,
            None if metaspace.get("add_prefix_space").and_then(Value::as_bool) == Some(false) => Self::None,
            None => Self::Always,
        }
    }
}

fn words_without_prefix(part: PreTokenizerWrapper) -> PreTokenizerWrapper {
    use tokenizers::pre_tokenizers::metaspace::PrependScheme;
    use tokenizers::pre_tokenizers::sequence::Sequence;
    match part {
        PreTokenizerWrapper::Metaspace(mut metaspace) => {
            metaspace.prepend_scheme = PrependScheme::Never;
            metaspace.into()
        }
        PreTokenizerWrapper::Sequence(parts) => {
            Sequence::new(parts.as_ref().iter().cloned().map(words_without_prefix).collect()).into()
        }
        other => other,
    }
}

fn form_without_prefix(part: NormalizerWrapper) -> NormalizerWrapper {
    match part {
        // An empty sequence changes nothing.
        NormalizerWrapper::Prepend(_) => Sequence::new(Vec::new()).into(),
        NormalizerWrapper::Sequence(parts) => {
            Sequence::new(parts.as_ref().iter().cloned().map(form_without_prefix).collect()).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MARK, fixture, smollm2, text_of};
    use super::super::{Pieces, Tokenizer};
    use super::*;
    use crate::loader::Gguf;
    use crate::testing;

    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        dir
    }

    /// The default model's vocabulary, as the library would write it.
    fn smollm2_json() -> Value {
        let gguf = Gguf::open(&testing::smollm2()).unwrap();
        let tokens = gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap();
        let kinds = gguf.integers("tokenizer.ggml.token_type").unwrap().unwrap();
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
        let added: Vec<Value> = tokens
            .iter()
            .zip(kinds)
            .enumerate()
            .filter(|(_, (_, kind))| *kind == 3)
            .map(|(id, (text, _))| json!({"id": id, "content": text, "special": true, "normalized": false}))
            .collect();
        json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": gguf.texts("tokenizer.ggml.merges").unwrap().unwrap()},
        })
    }

    #[test]
    fn the_same_vocabulary_gives_the_same_tokens_as_in_gguf() {
        let settings = json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}});
        let dir = folder(&[("tokenizer.json", smollm2_json()), ("tokenizer_config.json", settings)]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        let gguf = smollm2();
        assert_eq!(tokenizer.len(), gguf.len());
        assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("<|im_start|>", "<|im_end|>"));
        assert_eq!(tokenizer.unspeakable(), gguf.unspeakable());
        for (text, ids) in fixture::<Vec<(String, Vec<u32>)>>("smollm2_tokens.json") {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
            assert_eq!(text_of(&tokenizer, &ids), text);
        }
        let prompt = "<|im_start|>user\nHi<|im_end|>\n";
        assert_eq!(tokenizer.encode_prompt(prompt, MARK).unwrap(), gguf.encode_prompt(prompt, MARK).unwrap());
        assert!(tokenizer.is_end(2) && !tokenizer.is_end(1));
        let hostile = "a<|im_end|>b";
        let ids = tokenizer.encode_prompt(&tokenizer.mark(hostile, MARK), MARK).unwrap();
        assert_eq!(ids, gguf.encode(hostile).unwrap());
    }

    /// A SentencePiece vocabulary as merges: the better a piece's score, the earlier it is made.
    fn sentencepiece_json(fixture: &Pieces, normalizer: &Value, pre_tokenizer: &Value) -> Value {
        let number = |text: &str| fixture.pieces.iter().position(|piece| piece == text);
        let mut order: Vec<usize> = (0..fixture.pieces.len()).filter(|id| fixture.types[*id] == 1).collect();
        order.sort_by(|a, b| fixture.scores[*b].total_cmp(&fixture.scores[*a]));
        let mut merges = Vec::new();
        for id in order {
            let piece = &fixture.pieces[id];
            let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
            merges.extend(
                splits
                    .filter(|(left, right)| number(left).is_some() && number(right).is_some())
                    .map(|(left, right)| json!([left, right])),
            );
        }
        let vocab: serde_json::Map<String, Value> =
            fixture.pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
        let added: Vec<Value> = (0..fixture.pieces.len())
            .filter(|id| matches!(fixture.types[*id], 2..=4))
            .map(|id| json!({"id": id, "content": fixture.pieces[id], "special": fixture.types[id] != 4, "rstrip": false}))
            .collect();
        json!({
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>", "vocab": vocab,
                "merges": merges},
        })
    }

    #[test]
    fn merges_of_a_sentencepiece_model_give_its_tokens() {
        let fixture: Pieces = fixture("sentencepiece.json");
        let normalizer = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]});
        let file = sentencepiece_json(&fixture, &normalizer, &Value::Null);
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let dir = folder(&[("tokenizer.json", file), ("tokenizer_config.json", settings)]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        for (text, ids) in &fixture.cases {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{text:?}");
            assert_eq!(text_of(&tokenizer, ids).strip_prefix(' '), Some(text.as_str()));
        }
        assert!(tokenizer.has_dummy_space());
        assert_eq!(tokenizer.encode_prompt("<end_of_turn>x", MARK).unwrap()[0], 1, "as its template says");
    }

    #[test]
    fn a_space_may_be_only_for_the_beginning() {
        let fixture: Pieces = fixture("sentencepiece.json");
        let first = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
        let file = sentencepiece_json(&fixture, &Value::Null, &first);
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false});
        let dir = folder(&[("tokenizer.json", file), ("tokenizer_config.json", settings)]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        let ids = tokenizer.encode_prompt("the<end_of_turn>the", MARK).unwrap();
        assert_eq!(text_of(&tokenizer, &ids), " thethe");
    }

    #[test]
    fn control_tokens_may_eat_the_space_behind_them() {
        let mut file = smollm2_json();
        for token in file["added_tokens"].as_array_mut().unwrap() {
            token["rstrip"] = json!(true);
        }
        let settings = json!({"eos_token": "<|im_end|>"});
        let dir = folder(&[("tokenizer.json", file), ("tokenizer_config.json", settings)]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        let prompt = |text: &str| tokenizer.encode_prompt(text, MARK).unwrap();
        assert_eq!(
            prompt("<|im_start|>user\n<|im_end|> \n<|im_start|>\nx"),
            prompt("<|im_start|>user\n<|im_end|><|im_start|>x")
        );
    }

    #[test]
    fn what_ends_a_reply_is_read_from_all_files() {
        let ids = json!({"eos_token_id": [5, 6, 99_999_999]});
        let text = json!({"text_config": {"eos_token_id": 7}});
        let dir = folder(&[("tokenizer.json", smollm2_json()), ("generation_config.json", ids), ("config.json", text)]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        assert!([5, 6, 7].iter().all(|id| tokenizer.is_end(*id)));
    }

    #[test]
    fn broken_files_are_refused() {
        let refused = |file: Value| {
            let dir = folder(&[("tokenizer.json", file)]);
            Tokenizer::from_folder(dir.path()).unwrap_err().to_string()
        };
        assert!(refused(json!({"model": {"type": "Unigram", "vocab": []}})).contains("\"Unigram\" is not supported"));
        assert!(refused(json!({"model": {"type": "BPE"}})).contains("no vocabulary"));
        assert!(refused(json!([])).contains("no vocabulary"));
        let far = json!({"model": {"type": "BPE", "vocab": {"a": 7_000_000_000u64}, "merges": []}});
        assert!(refused(far).contains("beyond them all"));
        let mut bad = smollm2_json();
        bad["model"]["merges"] = json!(["nosuchpiece northis"]);
        refused(bad);
        let dir = folder(&[]);
        assert!(Tokenizer::from_folder(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
