use std::collections::HashSet;

/// Shorter words say little of what a text is about.
const SHORTEST_WORD: usize = 4;

/// Of the share of words that a text has in common with the prompt's, so much must be left.
const LEAST_KEPT: f64 = 0.9;

/// The words of the text that replies should be about.
pub(super) struct Topic<'a> {
    base_text: &'a str,
    words: std::cell::OnceCell<HashSet<String>>,
}

impl<'a> Topic<'a> {
    pub(super) const fn of(base_text: &'a str) -> Self {
        Self { base_text, words: std::cell::OnceCell::new() }
    }

    /// Says whether a text keeps to the topic about as much as another.
    pub(super) fn is_kept(&self, old: &str, new: &str) -> bool {
        old == new || self.share(new) >= LEAST_KEPT * self.share(old)
    }

    fn share(&self, text: &str) -> f64 {
        let known = self.words.get_or_init(|| words(self.base_text));
        let words = words(text);
        words.intersection(known).count() as f64 / words.len().max(1) as f64
    }
}

fn words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().nth(SHORTEST_WORD - 1).is_some());
    words.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_about_the_same() {
        let topic = Topic::of("Leaves make sugar out of light.");
        let text = "Leaves want light. Somebody else entirely knows.";
        assert!(topic.is_kept(text, "Leaves want light."));
        assert!(!topic.is_kept(text, "Somebody else entirely knows."));
        assert!(topic.is_kept("Nothing of it.", "Nothing."));
    }
}
