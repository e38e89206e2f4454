//! What Python takes for white space and for parts of words, where Rust takes something else: validators are Python.

use std::sync::LazyLock;

use regex::Regex;

/// A pattern for one character of white space: Python counts the four separators U+001C to U+001F.
const SPACE: &str = r"[\s\x1c-\x1f]";

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]$").expect("a fixed pattern compiles"));

/// Says whether `str.isspace` and the pattern `\s` take a character for white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Returns a text without the white space around it, as `str.strip`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Says whether the pattern `\w` takes a character: letters, numbers of all kinds and the underscore, but no combining marks.
pub(crate) fn is_word(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() || c == '_' } else { WORD.is_match(c.encode_utf8(&mut [0; 4])) }
}

/// Returns a Rust pattern (to be used with the `i` flag) for what one of Python's means with `re.IGNORECASE`: `\s` and `\w` as
/// above, and `i` for the dotted and the dotless letter too.
pub(crate) fn pattern(python: &str) -> String {
    let mut out = String::with_capacity(python.len() + 32);
    let (mut chars, mut in_class) = (python.chars(), false);
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('s'), false) => out.push_str(SPACE),
                (Some('s'), true) => out.push_str(r"\s\x1c-\x1f"),
                (Some('w'), false) => out.push_str(r"[\p{L}\p{N}_]"),
                (Some('w'), true) => out.push_str(r"\p{L}\p{N}_"),
                (Some(escaped), _) => out.extend(['\\', escaped]),
                (None, _) => out.push('\\'),
            },
            '[' | ']' => {
                in_class = c == '[';
                out.push(c);
            }
            'i' | 'I' if !in_class => out.push_str("[iİı]"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(strip("\x1f\u{85} a\x1cb\u{3000}\x1d"), "a\x1cb");
        assert!(!is_space('\u{200b}') && is_space('\u{a0}'));
        assert!(is_word('é') && is_word('²') && is_word('Ⅳ') && is_word('中') && is_word('_') && !is_word('\u{301}'));
        let digits = Regex::new(&pattern(r"^[\d\s]\s\w\.$")).unwrap();
        assert!(
            digits.is_match("\x1c\x1dé.")
                && digits.is_match("7 _.")
                && !digits.is_match("7 \u{301}.")
                && !digits.is_match("7 _,")
        );
        let letters = Regex::new(&format!("(?i){}", pattern("Its k"))).unwrap();
        assert!(["its k", "\u{130}T\u{17f} \u{212a}", "\u{131}ts K"].iter().all(|text| letters.is_match(text)));
    }
}
