//! How many tokens a text has, without a tokenizer.

/// Estimates a text's tokens.
///
/// The rule: a token for every 7 letters of a run of ASCII letters that are begun, for every 3 digits that are begun, for
/// each further character that is not white space, and for each run of line breaks. A model's own tokenizer may differ
/// by some tokens; budgets are not that exact.
///
/// ```
/// assert_eq!(idiolect_mutation::tokens::estimate("Answer using academic language."), 7);
/// ```
#[must_use]
pub fn estimate(text: &str) -> u32 {
    #[derive(PartialEq)]
    enum Run {
        Letters,
        Digits,
        Breaks,
        None,
    }
    let mut n = 0_u32;
    let (mut run, mut length) = (Run::None, 0_u32);
    for c in text.chars() {
        let (kind, of_one) = match c {
            'a'..='z' | 'A'..='Z' => (Run::Letters, 7),
            '0'..='9' => (Run::Digits, 3),
            '\n' | '\r' => (Run::Breaks, u32::MAX),
            c if c.is_whitespace() => (Run::None, 0),
            _ => (Run::None, 1),
        };
        length = if kind == run { length.saturating_add(1) } else { 0 };
        if of_one > 0 && (kind == Run::None || length % of_one == 0) {
            n = n.saturating_add(1);
        }
        run = kind;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        for (text, expected) in [
            ("", 0),
            ("  ", 0),
            ("a", 1),
            ("letters", 1),
            ("lettered", 2),
            ("two words", 2),
            ("12 1234", 3),
            ("a1", 2),
            ("Yes, it's.", 6),
            ("\n\nT", 2),
            ("日本語", 3),
        ] {
            assert_eq!(estimate(text), expected, "{text:?}");
        }
    }
}
