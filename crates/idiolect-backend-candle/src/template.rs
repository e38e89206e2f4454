//! The model's own chat template.

use idiolect_backend::{Error, Message, Role};
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::error::LoadError;
use crate::loader::Gguf;
use crate::tokenizer::Tokenizer;

/// Used where a file has no template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + \
                      '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

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
    /// Compiles the template that a file carries.
    pub(crate) fn read(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        let source = gguf.text("tokenizer.chat_template")?.filter(|source| !source.trim().is_empty());
        Self::compile(source.unwrap_or(CHATML), tokenizer.bos_text(), tokenizer.eos_text())
            .map_err(|e| LoadError::damaged(gguf.path(), format!("its chat template does not compile: {e}")))
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
            tools => Value::from(()),
            documents => Value::from(()),
        })
    }
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
