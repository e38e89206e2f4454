//! Lists as Python prints them, which is how the validators' own export script puts them into CSV.

use crate::cell::Cell;

/// Lists within lists within lists: no history is so deep.
const MOST_DEPTH: usize = 16;

/// Reads one Python literal: a list or tuple, a text with its escapes, a number, `None`, `True`, `False`, `nan` or `inf`.
///
/// # Errors
/// What is wrong, and at which character, counted from 1.
///
/// # Examples
/// ```
/// use idiolect_dataset::{Cell, python_literal};
///
/// let list = python_literal(r#"['it\'s', "a 'b'", None, 1e-3]"#).unwrap();
/// let text = |text: &str| Cell::Text(text.to_owned());
/// assert_eq!(list, Cell::List(vec![text("it's"), text("a 'b'"), Cell::Null, Cell::Number(0.001)]));
/// assert_eq!(python_literal("[1, ").unwrap_err(), "the list does not end, at character 5");
/// ```
pub fn python_literal(text: &str) -> Result<Cell, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at == text.len() { Ok(value) } else { Err(parser.wrong("something follows the value")) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("{what}, at character {}", self.text[..self.at].chars().count() + 1)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next();
        }
    }

    fn value(&mut self, depth: usize) -> Result<Cell, String> {
        self.space();
        match self.peek() {
            Some('[') => self.list(']', depth),
            Some('(') => self.list(')', depth),
            Some('\'' | '"') => Ok(Cell::Text(self.string()?)),
            Some(_) => self.word(),
            None => Err(self.wrong("a value is missing")),
        }
    }

    fn list(&mut self, end: char, depth: usize) -> Result<Cell, String> {
        if depth == MOST_DEPTH {
            return Err(self.wrong("lists are too deep"));
        }
        self.next();
        let mut items = Vec::new();
        loop {
            self.space();
            match self.peek() {
                Some(c) if c == end => {
                    self.next();
                    return Ok(Cell::List(items));
                }
                None => return Err(self.wrong("the list does not end")),
                Some(_) => items.push(self.value(depth + 1)?),
            }
            self.space();
            match self.peek() {
                Some(',') => {
                    self.next();
                }
                Some(c) if c == end => {}
                None => return Err(self.wrong("the list does not end")),
                Some(_) => return Err(self.wrong("a comma is missing")),
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.next();
        let mut out = String::new();
        loop {
            match self.next() {
                None => return Err(self.wrong("the text does not end")),
                c if c == quote => return Ok(out),
                Some('\\') => self.escape(&mut out)?,
                Some(c) => out.push(c),
            }
        }
    }

    /// Surrogates, of which Python's texts may have single ones, become the replacement character.
    fn escape(&mut self, out: &mut String) -> Result<(), String> {
        let Some(c) = self.next() else { return Err(self.wrong("the text does not end")) };
        let plain = match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'v' => '\x0b',
            '\\' | '\'' | '"' => c,
            '\n' => return Ok(()),
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            '0'..='7' => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
                    self.next();
                    code = code * 8 + digit;
                }
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            other => {
                // As Python does.
                out.push('\\');
                other
            }
        };
        out.push(plain);
        Ok(())
    }

    fn code(&mut self, n_digits: usize) -> Result<char, String> {
        let mut code = 0_u32;
        for _ in 0..n_digits {
            let digit =
                self.peek().and_then(|c| c.to_digit(16)).ok_or_else(|| self.wrong("a hexadecimal digit is missing"))?;
            self.next();
            code = code.wrapping_mul(16) + digit;
        }
        Ok(char::from_u32(code).unwrap_or('\u{fffd}'))
    }

    fn word(&mut self) -> Result<Cell, String> {
        let rest = &self.text[self.at..];
        let end =
            rest.find(|c: char| matches!(c, ',' | ']' | ')' | '[' | '(') || c.is_whitespace()).unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "None" => Cell::Null,
            "True" => Cell::Bool(true),
            "False" => Cell::Bool(false),
            "nan" | "NaN" => Cell::Number(f64::NAN),
            "inf" => Cell::Number(f64::INFINITY),
            "-inf" => Cell::Number(f64::NEG_INFINITY),
            // Rust would take "infinity" and "nan" in all spellings for numbers.
            number if number.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) => {
                let parsed = number.parse::<f64>().ok().filter(|parsed| parsed.is_finite());
                Cell::Number(parsed.ok_or_else(|| self.wrong(&format!("{number:?} is no number")))?)
            }
            other => {
                let other: String = other.chars().take(20).collect();
                return Err(self.wrong(&format!("{other:?} is no value of a list")));
            }
        };
        self.at += end;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }

    #[test]
    fn what_python_prints_is_read() {
        let cases = [
            ("[]", Cell::List(vec![])),
            (" [ 1 , 2.5,-3e-2 , ] ", Cell::List(vec![Cell::Number(1.0), Cell::Number(2.5), Cell::Number(-0.03)])),
            ("('a',)", Cell::List(vec![text("a")])),
            (
                r#"["it's", 'say "so"', 'both \' and "']"#,
                Cell::List(vec![text("it's"), text("say \"so\""), text("both ' and \"")]),
            ),
            (r"['\n\t\\\x41\u00e9\U0001F600\0\101\q']", Cell::List(vec![text("\n\t\\Aé😀\0A\\q")])),
            (r"['\ud83d']", Cell::List(vec![text("\u{fffd}")])),
            ("[None, True, False, nan, -inf]", {
                Cell::List(vec![
                    Cell::Null,
                    Cell::Bool(true),
                    Cell::Bool(false),
                    Cell::Number(f64::NAN),
                    Cell::Number(f64::NEG_INFINITY),
                ])
            }),
            ("[[1], []]", Cell::List(vec![Cell::List(vec![Cell::Number(1.0)]), Cell::List(vec![])])),
        ];
        for (literal, expected) in cases {
            // Not a number is not itself.
            assert_eq!(format!("{:?}", python_literal(literal).unwrap()), format!("{expected:?}"), "{literal}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (literal, expected) in [
            ("", "a value is missing, at character 1"),
            ("['é', 'a", "the text does not end, at character 9"),
            ("[1 2]", "a comma is missing, at character 4"),
            ("[1] 2", "something follows the value, at character 5"),
            ("[1, two]", "\"two\" is no value of a list, at character 5"),
            ("[1.2.3]", "\"1.2.3\" is no number, at character 2"),
            (r"['\xg']", "a hexadecimal digit is missing, at character 5"),
            ("[{}]", "\"{}\" is no value of a list, at character 2"),
            ("[,]", "\"\" is no value of a list, at character 2"),
        ] {
            assert_eq!(python_literal(literal).unwrap_err(), expected, "{literal}");
        }
        assert!(python_literal(&"[".repeat(100_000)).unwrap_err().contains("too deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(any in ".{0,60}") {
            let _ = python_literal(&any);
        }

        #[test]
        fn quoted_texts_come_back(texts in proptest::collection::vec("[a-z'\"\\\\\n\té]{0,12}", 0..5)) {
            let quoted: Vec<String> = texts.iter().map(|t| format!("'{}'", t.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))).collect();
            let read = python_literal(&format!("[{}]", quoted.join(", "))).unwrap();
            prop_assert_eq!(read, Cell::List(texts.iter().map(|t| text(t)).collect()));
        }
    }
}
