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
