//! Hashes that stand for prompts and completions.

use idiolect_backend::Message;
use sha2::{Digest, Sha256};

/// Returns the hash of a prompt: roles and texts, each with its length, so that no two prompts run together.
pub(crate) fn prompt(messages: &[Message]) -> String {
    let mut hasher = Sha256::new();
    for message in messages {
        hasher.update(message.role.as_str());
        hasher.update((message.content.len() as u64).to_le_bytes());
        hasher.update(&message.content);
    }
    hex(&hasher.finalize())
}

/// The hash by which rewards find the reply that they are for.
pub(crate) type CompletionHash = [u8; 16];

/// Returns the hash of what a caller was sent, without the white space around it, which clients may strip.
pub(crate) fn completion(caller: &str, text: &str) -> CompletionHash {
    let mut hasher = Sha256::new();
    hasher.update((caller.len() as u64).to_le_bytes());
    hasher.update(caller);
    hasher.update(text.trim());
    let mut hash = CompletionHash::default();
    hash.copy_from_slice(&hasher.finalize()[..16]);
    hash
}

/// Returns the number that the `nth` request's recipes and candidates are drawn by.
pub(crate) fn seed(seed: u64, nth: u64, prompt_hash: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(nth.to_le_bytes());
    hasher.update(prompt_hash);
    hasher.finalize().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_do_not_run_together() {
        let split = [Message::user("ab"), Message::user("c")];
        assert_ne!(prompt(&split), prompt(&[Message::user("a"), Message::user("bc")]));
        assert_ne!(prompt(&split[..1]), prompt(&[Message::system("ab")]));
        assert_eq!(prompt(&split), prompt(&split.clone()));
        assert_eq!(prompt(&split).len(), 64);
        assert_eq!(hex(&[0x00, 0x5a, 0xff]), "005aff");
    }

    #[test]
    fn completions_are_told_apart_by_caller_and_text() {
        assert_eq!(completion("a", " x\n"), completion("a", "x"));
        assert_ne!(completion("a", "x"), completion("b", "x"));
        assert_ne!(completion("a", "bx"), completion("ab", "x"));
        assert_ne!(completion("a", "x"), completion("a", "y"));
    }
}
