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

/// Returns the hash of a completion, without the white space around it, which clients may strip.
pub(crate) fn completion(text: &str) -> String {
    hex(&Sha256::digest(text.trim()))
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
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
        assert_eq!(completion(" x\n"), completion("x"));
        assert_eq!(completion("x").len(), 64);
    }
}
