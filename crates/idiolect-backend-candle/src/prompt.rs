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
    /// oldest first. System messages and everything from the last user message on are kept. Of a conversation much too
    /// long no more is tokenised than about what fits: then the figures of what was left out are estimates.
    pub(crate) fn prompt(&self, messages: &[Message], max_tokens: u32) -> Result<Prompt, Error> {
        let reserve = usize::try_from(max_tokens).unwrap_or(usize::MAX).min(self.context / 4).max(1);
        let budget = self.context - reserve;
        let n_whole = match self.encode(messages, budget)? {
            Encoded::Whole(tokens) if tokens.len() <= budget => return Ok(Prompt { tokens, trimmed: 0 }),
            Encoded::Whole(tokens) => tokens.len(),
            Encoded::Beyond(estimate) => estimate,
        };

        let turns = turns(messages);
        let mut kept = vec![true; messages.len()];
        turns.iter().flatten().for_each(|&index| kept[index] = false);
        let mut tokens = self.encode_kept(messages, &kept, budget)?;
        // What the template puts around a message, rounded up: trying too early costs a rendering, too late a turn.
        let mut n_said = 0;
        for (message, _) in messages.iter().zip(&kept).filter(|(_, kept)| **kept) {
            n_said += self.size(&message.content, budget)?.unwrap_or(0);
        }
        let n_kept = kept.iter().filter(|kept| **kept).count().max(1);
        let around = tokens.len().saturating_sub(n_said).div_ceil(n_kept);

        let mut room = budget - tokens.len();
        let mut taken = Vec::new();
        'turns: for turn in turns.iter().rev() {
            for &index in turn {
                match self.size(&messages[index].content, room)? {
                    Some(size) if size + around <= room => room -= size + around,
                    _ => break 'turns,
                }
            }
            taken.push(turn);
        }
        while !taken.is_empty() {
            taken.iter().copied().flatten().for_each(|&index| kept[index] = true);
            match self.encode_kept(messages, &kept, budget) {
                Ok(more) => {
                    tokens = more;
                    break;
                }
                Err(Error::ContextTooLong { .. }) => {}
                Err(error) => return Err(error),
            }
            taken.pop().into_iter().flatten().for_each(|&index| kept[index] = false);
        }
        let trimmed = n_whole.saturating_sub(tokens.len()).max(1);
        Ok(Prompt { tokens, trimmed: count(trimmed) })
    }

    /// Renders and tokenises the messages that are kept, which must fit.
    fn encode_kept(&self, messages: &[Message], kept: &[bool], budget: usize) -> Result<Vec<u32>, Error> {
        let kept = messages.iter().zip(kept).filter(|(_, kept)| **kept).map(|(message, _)| message.clone());
        let n = match self.encode(&kept.collect::<Vec<_>>(), budget)? {
            Encoded::Whole(tokens) if tokens.len() <= budget => return Ok(tokens),
            Encoded::Whole(tokens) => tokens.len(),
            Encoded::Beyond(estimate) => estimate,
        };
        Err(Error::ContextTooLong { prompt_tokens: count(n), context_tokens: count(self.context) })
    }

    fn encode(&self, messages: &[Message], budget: usize) -> Result<Encoded, Error> {
        let rendered = self.template.render(messages, &self.tokenizer)?;
        let whole = |text: &str| self.tokenizer.encode_prompt(text, rendered.mark).map_err(refused);
        if let Some(estimate) = self.beyond(&rendered.text, budget, |text| Ok(whole(text)?.len()))? {
            return Ok(Encoded::Beyond(estimate));
        }
        let tokens = whole(&rendered.text)?;
        if tokens.is_empty() {
            return Err(Error::InvalidRequest("the prompt has no tokens".to_owned()));
        }
        Ok(Encoded::Whole(tokens))
    }

    /// Returns how many tokens a text has, `None` where it surely has more than `most`.
    fn size(&self, text: &str, most: usize) -> Result<Option<usize>, Error> {
        let whole = |text: &str| self.tokenizer.encode(text).map(|ids| ids.len()).map_err(refused);
        match self.beyond(text, most, whole)? {
            Some(_) => Ok(None),
            None => whole(text).map(Some),
        }
    }

    /// Returns an estimate of a text's tokens where it surely has more than `most`, as far as its length or its
    /// beginning tells: tokenising a megabyte takes seconds.
    fn beyond(
        &self,
        text: &str,
        most: usize,
        whole: impl Fn(&str) -> Result<usize, Error>,
    ) -> Result<Option<usize>, Error> {
        let least = text.len() / self.tokenizer.max_token_bytes();
        if least > most {
            return Ok(Some(least.max(text.len() / TOKEN_BYTES)));
        }
        let Some(head) = beginning(text, (most + SLACK) * HEAD_BYTES) else { return Ok(None) };
        let n = whole(head)?;
        // Where the cut is makes a difference of a few tokens.
        if n <= most + SLACK {
            return Ok(None);
        }
        let estimate = n as u128 * text.len() as u128 / head.len() as u128;
        Ok(Some(usize::try_from(estimate).unwrap_or(usize::MAX)))
    }
}

/// Bytes of a text's beginning that are tokenised to see whether it is too long, for each token that it may have: about
/// twice what a token of English stands for.
const HEAD_BYTES: usize = 8;
/// Bytes that a token of English stands for, about.
const TOKEN_BYTES: usize = 4;
/// Tokens that a text cut in two may have more than whole.
const SLACK: usize = 16;

/// Returns about the first `bytes` of a text that is more than twice as long: up to the end of a word, where there is one.
fn beginning(text: &str, bytes: usize) -> Option<&str> {
    if text.len() / 2 <= bytes {
        return None;
    }
    let head = &text[..text.floor_char_boundary(bytes)];
    let end = head.rfind(char::is_whitespace).map(|at| head[..at].trim_end()).filter(|head| head.len() > bytes / 2);
    Some(end.unwrap_or(head))
}

enum Encoded {
    Whole(Vec<u32>),
    /// More than may be, by this estimate of how many it has.
    Beyond(usize),
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
    use crate::testing::Stopwatch;

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

    fn prompter(context: usize) -> Prompter {
        let gguf = crate::loader::Gguf::open(&crate::testing::smollm2()).unwrap();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        let template = Template::read(&gguf, &tokenizer).unwrap();
        Prompter { tokenizer, template, context }
    }

    #[test]
    fn a_mebibyte_is_refused_at_once_whatever_it_is_made_of() {
        let prompter = prompter(4096);
        let texts = [
            "word ".repeat((1 << 20) / 5),
            "nowordsatall".repeat((1 << 20) / 12),
            "\u{4e2d}\u{6587}".repeat((1 << 20) / 6),
            "1 + 2\n".repeat((1 << 20) / 6),
            " ".repeat((1 << 20) - 1) + "x",
        ];
        for text in texts {
            let began = Stopwatch::start();
            let error = prompter.prompt(&[Message::user(text.as_str())], 160).unwrap_err();
            let took = began.elapsed();
            assert!(matches!(error, Error::ContextTooLong { prompt_tokens, .. } if prompt_tokens > 4096), "{error}");
            assert!(took.as_millis() < 1500, "{:?}: {took:?}", &text[..12]);
        }
    }

    #[test]
    fn of_a_huge_history_the_newest_turns_that_fit_are_kept() {
        let prompter = prompter(1024);
        let mut messages = vec![Message::system("Be brief.")];
        for n in 0..4000 {
            messages.push(Message::user(format!("Question {n}: {}", "and so it went on and on, ".repeat(6))));
            messages.push(Message::assistant(format!("Answer {n}.")));
        }
        messages.push(Message::user("What was that?"));
        let began = Stopwatch::start();
        let prompt = prompter.prompt(&messages, 100).unwrap();
        assert!(began.elapsed().as_millis() < 1500, "{:?}", began.elapsed());
        assert!(prompt.tokens.len() <= 924 && prompt.tokens.len() > 924 - 140, "{}", prompt.tokens.len());
        assert!((100_000..400_000).contains(&prompt.trimmed), "{}", prompt.trimmed);
        let text: Vec<u8> = prompt.tokens.iter().flat_map(|id| prompter.tokenizer.bytes(*id).into_owned()).collect();
        let text = String::from_utf8(text).unwrap();
        for kept in ["Be brief.", "Answer 3999.", "What was that?"] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
        assert!(!text.contains("Answer 0."));

        // A turn that is too long ends what is kept, however short the older ones are.
        let turns =
            [Message::user("one"), Message::user("two ".repeat(400_000)), Message::user("three"), Message::user("?")];
        let prompt = prompter.prompt(&turns, 100).unwrap();
        assert_eq!(prompt.tokens, prompter.prompt(&turns[2..], 100).unwrap().tokens);
        assert!(prompt.trimmed > 300_000, "{}", prompt.trimmed);
    }

    #[test]
    fn what_just_fits_is_not_refused() {
        let prompter = prompter(4096);
        // About 80 bytes a token: far longer than most texts of its tokens.
        let spaces = format!("{}end", format!("{}\n", "=".repeat(63)).repeat(600));
        let whole = prompter.prompt(&[Message::user(spaces.as_str())], 16).unwrap();
        assert_eq!(whole.trimmed, 0);
        assert!(whole.tokens.len() < 4080, "{}", whole.tokens.len());
    }
}
