//! From messages to tokens that fit the context.

use idiolect_backend::{Error, Message, Role};

use crate::template::Template;
use crate::tokenizer::{TokenizeError, Tokenizer};

/// A prompt that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// Tokens of the messages that were left out.
    pub(crate) trimmed: u32,
}

/// Turns conversations into prompts.
#[derive(Debug)]
pub(crate) struct Prompter {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Template,
    pub(crate) context: usize,
}

impl Prompter {
    /// Renders and tokenises a conversation.
    ///
    /// One that leaves less than `max_tokens`, or than a quarter of the context if that is less, loses whole turns, the
    /// oldest first. System messages and everything from the last user message on are kept.
    pub(crate) fn prompt(&self, messages: &[Message], max_tokens: u32) -> Result<Prompt, Error> {
        let reserve = usize::try_from(max_tokens).unwrap_or(usize::MAX).min(self.context / 4).max(1);
        let budget = self.context - reserve;
        let full = self.encode(messages)?;
        if full.len() <= budget {
            return Ok(Prompt { tokens: full, trimmed: 0 });
        }

        let sizes = messages.iter().map(|m| self.tokenizer.encode(&m.content).map(|ids| ids.len()));
        let sizes = sizes.collect::<Result<Vec<usize>, TokenizeError>>().map_err(refused)?;
        let mut dropped = vec![false; messages.len()];
        let mut expected = full.len();
        // What the template puts around a message, rounded up: trying too early costs a rendering, too late a turn.
        let around = full.len().saturating_sub(sizes.iter().sum()).div_ceil(messages.len());
        let mut turns = turns(messages).into_iter();
        let tokens = loop {
            let Some(turn) = turns.next() else {
                return Err(Error::ContextTooLong {
                    prompt_tokens: count(expected),
                    context_tokens: count(self.context),
                });
            };
            for index in turn {
                dropped[index] = true;
                expected = expected.saturating_sub(sizes[index] + around);
            }
            // Rendering again is dear, so it waits until the sizes say that it may fit.
            if expected <= budget {
                let kept = messages.iter().zip(&dropped).filter(|(_, dropped)| !**dropped);
                let tokens = self.encode(&kept.map(|(m, _)| m.clone()).collect::<Vec<_>>())?;
                expected = tokens.len();
                if tokens.len() <= budget {
                    break tokens;
                }
            }
        };
        let trimmed = full.len().saturating_sub(tokens.len());
        Ok(Prompt { tokens, trimmed: count(trimmed) })
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        let rendered = self.template.render(messages, &self.tokenizer)?;
        let tokens = self.tokenizer.encode_prompt(&rendered.text, rendered.mark).map_err(refused)?;
        if tokens.is_empty() {
            return Err(Error::InvalidRequest("the prompt has no tokens".to_owned()));
        }
        Ok(tokens)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn refused(error: TokenizeError) -> Error {
    Error::InvalidRequest(error.to_string())
}

pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Returns the turns that may be dropped, oldest first: a user message and what the assistant said to it, before the
/// last user message.
fn turns(messages: &[Message]) -> Vec<Vec<usize>> {
    let last_user = messages.iter().rposition(|m| m.role == Role::User).unwrap_or(messages.len().saturating_sub(1));
    let mut turns: Vec<Vec<usize>> = Vec::new();
    let mut reply = false;
    for (index, message) in messages[..last_user].iter().enumerate() {
        match message.role {
            Role::System => {}
            Role::User => {
                turns.push(vec![index]);
                reply = true;
            }
            Role::Assistant if reply => {
                if let Some(turn) = turns.last_mut() {
                    turn.push(index);
                }
            }
            Role::Assistant => turns.push(vec![index]),
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_leave_out_system_and_the_last_question() {
        let messages = [
            Message::system("s"),
            Message::assistant("hello"),
            Message::user("1"),
            Message::assistant("a"),
            Message::assistant("b"),
            Message::user("2"),
            Message::user("3"),
            Message::assistant("c"),
        ];
        assert_eq!(turns(&messages), [vec![1], vec![2, 3, 4], vec![5]]);
        assert!(turns(&messages[..1]).is_empty());
        assert!(turns(&[]).is_empty());
    }
}
