//! The model's own chat template.

use std::path::Path;

use idiolect_backend::{Error, Message, Role};
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::error::LoadError;
use crate::loader::Gguf;
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, json};

/// Largest template that is read; real ones have some ten kilobytes.
const MAX_TEMPLATE: u64 = 4 << 20;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + \
                      '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + \
                      '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const GEMMA: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}\
                     {{ raise_exception('the system has no turn of its own') }}{% endif %}{{ '<start_of_turn>' + \
                     ('model' if message.role == 'assistant' else 'user') + '\n' + message.content | trim + \
                     '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

const PHI3: &str = "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const INSTRUCT: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}\
                        {{ raise_exception('the system has no turn of its own') }}{% elif message.role == 'user' %}\
                        {{ '[INST] ' + message.content | trim + ' [/INST]' }}{% else %}\
                        {{ ' ' + message.content | trim + eos_token }}{% endif %}{% endfor %}";

/// For vocabularies with no control tokens for turns: models that were taught nothing about them.
const PLAIN: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content | trim + \
                     '\n\n' }}{% else %}{{ ('Answer: ' if message.role == 'assistant' else 'Question: ') + \
                     message.content | trim + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}";

/// What serves where a file has no template, by the control tokens that show what the model was taught.
const FALLBACKS: [(&[&str], &str); 5] = [
    (&["<|im_start|>", "<|im_end|>"], CHATML),
    (&["<|start_header_id|>", "<|eot_id|>"], LLAMA3),
    (&["<start_of_turn>", "<end_of_turn>"], GEMMA),
    (&["<|user|>", "<|end|>"], PHI3),
    (&["[INST]", "[/INST]"], INSTRUCT),
];

/// Steps that one rendering may take: enough for thousands of turns, well under a second.
const FUEL: u64 = 2_000_000;

/// Characters that no text may hold by the Unicode standard, one of which serves as mark.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// A rendered conversation.
pub(crate) struct Rendered {
    /// The prompt, with marks inside the messages.
    pub(crate) text: String,
    /// The character that marks are made of.
    pub(crate) mark: char,
}

impl Template {
    /// Compiles the template that a GGUF file carries.
    pub(crate) fn read(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        Self::choose(gguf.text("tokenizer.chat_template")?, tokenizer, gguf.path())
    }

    /// Compiles the template of a model in either kind of file.
    pub(crate) fn of(weights: &Weights, tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        match weights.gguf() {
            Some(gguf) => Self::read(gguf, tokenizer),
            None => Self::choose(from_folder(weights.path())?.as_deref(), tokenizer, weights.path()),
        }
    }

    fn choose(source: Option<&str>, tokenizer: &Tokenizer, path: &Path) -> Result<Self, LoadError> {
        let source = source.filter(|source| !source.trim().is_empty()).unwrap_or_else(|| {
            let fits = |(controls, _): &&(&[&str], &str)| controls.iter().all(|text| tokenizer.has_control(text));
            FALLBACKS.iter().find(fits).map_or(PLAIN, |(_, source)| source)
        });
        Self::compile(source, tokenizer.bos_text(), tokenizer.eos_text())
            .map_err(|e| LoadError::damaged(path, format!("its chat template does not compile: {e}")))
    }

    fn compile(source: &str, bos: &str, eos: &str) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        // As the library does for which these templates are written.
        environment.set_syntax(environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_template_owned("chat", source.to_owned())?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Renders a conversation, ready for the assistant to speak.
    ///
    /// Templates that know no system role, or want strict turns, get the conversation folded: the system's text goes
    /// before the next user message, and neighbours of one role become one message.
    pub(crate) fn render(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Rendered, Error> {
        let unused = MARKS.into_iter().find(|mark| messages.iter().all(|m| !m.content.contains(*mark)));
        let mark =
            unused.ok_or_else(|| Error::InvalidRequest("the messages hold too many noncharacters".to_owned()))?;
        let turn = |m: &Message| context! { role => m.role.as_str(), content => tokenizer.mark(&m.content, mark) };
        let plain = self.try_render(messages.iter().map(turn).collect());
        let text = plain.or_else(|error| {
            let folded = fold(messages);
            if folded == messages {
                return Err(error);
            }
            self.try_render(folded.iter().map(turn).collect()).map_err(|_| error)
        });
        let text = text.map_err(|error| {
            // Details of other kinds may quote the conversation.
            let reason = if error.kind() == ErrorKind::InvalidOperation { error.detail() } else { None };
            let reason = reason.map_or_else(|| error.kind().to_string(), str::to_owned);
            Error::InvalidRequest(format!("the model's chat template refuses the conversation: {reason}"))
        })?;
        Ok(Rendered { text, mark })
    }

    fn try_render(&self, turns: Vec<Value>) -> Result<String, minijinja::Error> {
        self.environment.get_template("chat")?.render(context! {
            messages => turns,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            // Replies are wanted within seconds: models that can think aloud first are told not to.
            enable_thinking => false,
            tools => Value::from(()),
            documents => Value::from(()),
        })
    }
}

/// Returns the template of a folder: a file of its own, or a setting of the tokenizer's.
fn from_folder(dir: &Path) -> Result<Option<String>, LoadError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::metadata(&path) {
        Ok(about) if about.len() > MAX_TEMPLATE => {
            return Err(LoadError::damaged(&path, format!("it has {} bytes, expected a template", about.len())));
        }
        Ok(_) => return std::fs::read_to_string(&path).map(Some).map_err(|e| LoadError::io(&path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(LoadError::io(&path, e)),
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let Some(settings) = json(&dir.join(name))? else { continue };
        // One template, or several by name.
        let template = match settings.get("chat_template") {
            Some(serde_json::Value::Array(named)) => {
                let of =
                    |name: &str| named.iter().find(|entry| entry["name"] == name).and_then(|e| e["template"].as_str());
                of("default")
            }
            Some(template) => template.as_str(),
            None => None,
        };
        if let Some(template) = template {
            return Ok(Some(template.to_owned()));
        }
    }
    Ok(None)
}

fn fold(messages: &[Message]) -> Vec<Message> {
    let mut folded: Vec<Message> = Vec::new();
    for message in messages {
        let role = if message.role == Role::System { Role::User } else { message.role };
        match folded.last_mut() {
            Some(last) if last.role == role => {
                last.content.push_str("\n\n");
                last.content.push_str(&message.content);
            }
            _ => folded.push(Message::new(role, message.content.clone())),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::testing::{self, TinyGguf};

    fn tokenizer() -> Tokenizer {
        Tokenizer::read(&TinyGguf::model("llama").open().1).unwrap()
    }

    /// Renders without the marks.
    fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
        let Rendered { text, mark } =
            Template::compile(source, "<s>", "</s>").unwrap().render(messages, &tokenizer())?;
        Ok(text.replace(mark, ""))
    }

    fn talk() -> Vec<Message> {
        vec![Message::system("Be brief."), Message::user("Hi"), Message::assistant("Hello"), Message::user("Why?")]
    }

    #[derive(Deserialize)]
    struct Case {
        messages: Vec<(Role, String)>,
        rendered: String,
        ids: Vec<u32>,
    }

    #[test]
    fn the_default_model_gets_the_prompt_that_the_reference_renders() {
        let gguf = Gguf::open(&testing::smollm2()).unwrap();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        let template = Template::read(&gguf, &tokenizer).unwrap();
        let text = std::fs::read_to_string(testing::data("smollm2_prompts.json")).unwrap();
        for case in serde_json::from_str::<Vec<Case>>(&text).unwrap() {
            let messages: Vec<Message> =
                case.messages.into_iter().map(|(role, text)| Message::new(role, text)).collect();
            let Rendered { text, mark } = template.render(&messages, &tokenizer).unwrap();
            assert_eq!(text.replace(mark, ""), case.rendered);
            assert_eq!(tokenizer.encode_prompt(&text, mark).unwrap(), case.ids);
        }
    }

    #[test]
    fn a_file_without_template_gets_chatml() {
        let (_dir, gguf) = TinyGguf::model("llama").open();
        let template = Template::read(&gguf, &tokenizer()).unwrap();
        let Rendered { text, mark } = template.render(&talk()[1..2], &tokenizer()).unwrap();
        assert_eq!(text.replace(mark, ""), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn what_serves_without_a_template_suits_the_vocabulary() {
        let rendered = |controls: [&str; 2]| {
            let mut tiny = TinyGguf::model("llama");
            let Some((_, value)) = tiny.metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens") else {
                panic!("no tokens");
            };
            let candle_core::quantized::gguf_file::Value::Array(tokens) = value else { panic!("no list") };
            for (token, text) in tokens[256..].iter_mut().zip(controls) {
                *token = candle_core::quantized::gguf_file::Value::String(text.to_owned());
            }
            let (_dir, gguf) = tiny.open();
            let tokenizer = Tokenizer::read(&gguf).unwrap();
            let template = Template::read(&gguf, &tokenizer).unwrap();
            let Rendered { text, mark } = template.render(&talk(), &tokenizer).unwrap();
            text.replace(mark, "")
        };
        let gemma = rendered(["<start_of_turn>", "<end_of_turn>"]);
        let expected = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n\
                        <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";
        assert!(gemma.ends_with(expected), "{gemma}");
        let llama = rendered(["<|start_header_id|>", "<|eot_id|>"]);
        assert!(llama.ends_with("Why?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"), "{llama}");
        let phi = rendered(["<|user|>", "<|end|>"]);
        assert!(phi.starts_with("<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n"), "{phi}");
        let instruct = rendered(["[INST]", "[/INST]"]);
        assert!(instruct.ends_with("[INST] Why? [/INST]"), "{instruct}");
        let plain = rendered(["<a>", "<b>"]);
        assert!(plain.ends_with("Be brief.\n\nQuestion: Hi\n\nAnswer: Hello\n\nQuestion: Why?\n\nAnswer:"), "{plain}");
    }

    #[test]
    fn templates_of_folders_are_found_wherever_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(from_folder(dir.path()).unwrap(), None);
        write("tokenizer_config.json", r#"{"chat_template": "one"}"#);
        assert_eq!(from_folder(dir.path()).unwrap().as_deref(), Some("one"));
        let named = r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "two"}]}"#;
        write("tokenizer_config.json", named);
        assert_eq!(from_folder(dir.path()).unwrap().as_deref(), Some("two"));
        write("chat_template.jinja", "three");
        assert_eq!(from_folder(dir.path()).unwrap().as_deref(), Some("three"));
    }

    #[test]
    fn what_templates_of_the_families_use_works() {
        let conditions = "{%- if strftime_now is defined %}now{% else %}then{% endif %}\
                          {%- if tools is not none %}tools{% endif %}{%- if not date_string is defined %}|none{% endif %}\
                          {%- if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}\
                          {% set rest = messages %}{% endif %}{{ '|' ~ rest | length }}";
        assert_eq!(render(conditions, &talk()).unwrap(), "then|none|3");
        let thinking = "{%- if enable_thinking is defined and enable_thinking is false %}quick{% endif %}";
        assert_eq!(render(thinking, &talk()).unwrap(), "quick");
        let backwards = "{%- set ns = namespace(last=0, tool=true) %}{%- for m in messages[::-1] %}\
                         {%- set index = (messages | length - 1) - loop.index0 %}\
                         {%- if ns.tool and m.role == 'user' and m.content is string %}{%- set ns.tool = false %}\
                         {%- set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}";
        assert_eq!(render(backwards, &talk()).unwrap(), "3");
        let split = "{{ messages[2].content.split('l')[0].rstrip('e') ~ messages[2].content.lstrip('H') }}";
        assert_eq!(render(split, &talk()).unwrap(), "Hello");
    }

    #[test]
    fn messages_are_never_read_as_templates() {
        let hostile = "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}{{ bos_token }}";
        assert!(render(CHATML, &[Message::user(hostile)]).unwrap().contains(hostile));
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{% for m in messages %}{% if m['role'].startswith('sys') %}{% continue %}{% endif %}\
                      {{ m.content.strip().upper() }}|{% endfor %}{{ eos_token }}";
        assert_eq!(render(source, &talk()).unwrap(), "HI|HELLO|WHY?|</s>");
        assert_eq!(render("{{ messages[0].content | trim }}", &[Message::user("  a b \n")]).unwrap(), "a b");
    }

    #[test]
    fn conversations_are_folded_for_strict_templates() {
        let strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
                      {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
                      [{{ m.content }}]{% endfor %}";
        assert_eq!(render(strict, &talk()).unwrap(), "[Be brief.\n\nHi][Hello][Why?]");
        let refused = render(strict, &[Message::assistant("a")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "invalid request: the model's chat template refuses the conversation: roles must alternate"
        );
    }

    #[test]
    fn endless_templates_stop_and_broken_ones_are_refused() {
        let error =
            render("{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}", &talk());
        assert!(matches!(error, Err(Error::InvalidRequest(_))));
        assert!(Template::compile("{% for %}", "", "").is_err());
        assert!(render("{{ nothing.there }}", &talk()).is_err(), "strict about what is not there");
    }

    #[test]
    fn messages_with_noncharacters_get_another_mark() {
        let text = "a\u{fdd0}b";
        let Rendered { text: rendered, mark } =
            Template::compile(CHATML, "", "").unwrap().render(&[Message::user(text)], &tokenizer()).unwrap();
        assert_ne!(mark, '\u{fdd0}');
        assert!(rendered.replace(mark, "").contains(text));
        let all: String = MARKS.collect();
        assert!(render(CHATML, &[Message::user(all)]).is_err());
    }
}
