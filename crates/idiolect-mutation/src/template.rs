//! Rendering of operators' texts. Only what a library holds is ever a template.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::Task;

/// Why an operator's template gives no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The template is wrong, or names something that is not there.
    #[error("{0}")]
    Template(String),
    /// It ran for too long.
    #[error("the template does not end within {FUEL} steps")]
    OutOfFuel,
    /// Nothing came out.
    #[error("the template gives no text")]
    Empty,
    /// Too much came out.
    #[error("the template gives {n} characters, at most {MAX_CHARACTERS} are allowed")]
    TooLong {
        /// How much.
        n: usize,
    },
    /// More tokens came out than the operator may add.
    #[error("the template gives about {n} tokens, expected at most {max}")]
    OverBudget {
        /// How many, by [`estimate`](crate::tokens::estimate).
        n: u32,
        /// The operator's `max_tokens`.
        max: u32,
    },
    /// It holds what its operator must not induce.
    #[error("the template gives {text:?}, which the operator forbids")]
    Forbidden {
        /// The forbidden text.
        text: String,
    },
    /// A rewrite must hold the prompt, or its paraphrase, once.
    #[error("the template holds {PROMPT} or {PARAPHRASE} {n} times, expected once")]
    Prompts {
        /// How often it does.
        n: usize,
    },
}

/// What stands for the caller's text in a rewrite, in its template and still in what was rendered.
pub(crate) const PROMPT: &str = "{{ prompt }}";
/// What stands for that text in other words.
pub(crate) const PARAPHRASE: &str = "{{ paraphrase }}";
/// Steps that a template may take.
const FUEL: u64 = 2_000;
/// More would crowd the prompt out, whatever the budget of tokens.
const MAX_CHARACTERS: usize = 400;

/// Where output stops, long before it is counted.
const MOST_BYTES: usize = 4_096;
/// The statements that a template may have. What assigns could double a text again and again within a few steps.
const STATEMENTS: [&str; 6] = ["if", "elif", "else", "endif", "for", "endfor"];
/// Loops of a template, for the same reason.
const MOST_LOOPS: usize = 3;

/// Holds what a template gives, up to a size.
#[derive(Default)]
struct Output(Vec<u8>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks that a template has nothing but the statements above, and neither arithmetic nor the joining of texts.
fn check_language(template: &str) -> Result<(), RenderError> {
    let refuse = |what: String| Err(RenderError::Template(what));
    let mut n_loops = 0;
    let mut rest = template;
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (open, inner) = rest[at..].split_at(2);
        if open == "{#" {
            rest = inner.find("#}").map_or("", |end| &inner[end + 2..]);
            continue;
        }
        let close = if open == "{{" { "}}" } else { "%}" };
        let end = end_of_tag(inner, close);
        let tag = &inner[..end];
        if open == "{%" {
            let statement = tag.trim_start_matches(['-', '+', ' ', '\n', '\t']);
            let statement = statement.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            n_loops += usize::from(statement == "for");
            if !STATEMENTS.contains(&statement) {
                return refuse(format!("unknown statement {statement:?}, expected {}", STATEMENTS.join(", ")));
            }
        }
        let edges: &[char] = &['-', '+'];
        if let Some(sign) = without_strings(tag.trim_matches(edges)).find(['*', '~', '+', '/', '|']) {
            let sign = &without_strings(tag.trim_matches(edges))[sign..=sign];
            return refuse(format!("{sign:?} in {:?}, expected no arithmetic, joining or filters", tag.trim()));
        }
        rest = inner.get(end + 2..).unwrap_or_default();
    }
    if n_loops > MOST_LOOPS {
        return refuse(format!("{n_loops} loops, expected at most {MOST_LOOPS}"));
    }
    Ok(())
}

/// Returns where a tag's inside ends: before its closing mark, outside of strings.
fn end_of_tag(inner: &str, close: &str) -> usize {
    let outside = without_strings(inner);
    outside.find(close).unwrap_or(inner.len())
}

/// Returns a text of the same length with spaces in the place of what stands in strings.
fn without_strings(text: &str) -> String {
    let mut quote = None;
    let mut escaped = false;
    let mut blank = |c: char| {
        let is_inside = match quote {
            Some(_) if escaped => {
                escaped = false;
                true
            }
            Some(_) if c == '\\' => {
                escaped = true;
                true
            }
            Some(open) if c == open => {
                quote = None;
                false
            }
            Some(_) => true,
            None => {
                if c == '\'' || c == '"' {
                    quote = Some(c);
                }
                false
            }
        };
        if is_inside { " ".repeat(c.len_utf8()) } else { c.to_string() }
    };
    text.chars().map(&mut blank).collect()
}

/// The words that `word()` draws from, one a line.
static WORDS: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("words.txt").lines().collect());

/// Renders a template. With `keeps_prompt` it may name `prompt`, which comes out as it went in.
pub(crate) fn render(template: &str, task: Task, seed: u64, keeps_prompt: bool) -> Result<String, RenderError> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    let random = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed)));
    let draw = move |random: &Mutex<ChaCha8Rng>, n: u64| random.lock().map_or(0, |mut r| r.next_u64()) % n.max(1);
    let of_pick = Arc::clone(&random);
    environment.add_function("pick", move |choices: Vec<Value>| -> Result<Value, minijinja::Error> {
        let index = usize::try_from(draw(&of_pick, choices.len() as u64)).unwrap_or(0);
        let empty = || minijinja::Error::new(ErrorKind::InvalidOperation, "pick needs a list that is not empty");
        choices.into_iter().nth(index).ok_or_else(empty)
    });
    let of_word = Arc::clone(&random);
    environment.add_function("word", move || -> String {
        let index = usize::try_from(draw(&of_word, WORDS.len() as u64)).unwrap_or(0);
        WORDS.get(index).copied().unwrap_or_default().to_owned()
    });
    environment.add_function("number", move |low: i64, high: i64| -> Result<i64, minijinja::Error> {
        let n = high.checked_sub(low).filter(|n| (0..i64::from(u32::MAX)).contains(n)).ok_or_else(|| {
            minijinja::Error::new(ErrorKind::InvalidOperation, "number needs a lowest and a highest number")
        })?;
        Ok(low + i64::try_from(draw(&random, n.unsigned_abs() + 1)).unwrap_or(0))
    });
    check_language(template)?;
    let mut output = Output::default();
    let rendered = environment.template_from_str(template).and_then(|template| {
        if keeps_prompt {
            let context = context! { task => task.as_str(), prompt => PROMPT, paraphrase => PARAPHRASE };
            template.render_captured_to(context, &mut output).map(drop)
        } else {
            template.render_captured_to(context! { task => task.as_str() }, &mut output).map(drop)
        }
    });
    if let Err(error) = rendered {
        return Err(match error.kind() {
            ErrorKind::OutOfFuel => RenderError::OutOfFuel,
            ErrorKind::WriteFailure => RenderError::TooLong { n: MOST_BYTES },
            _ => RenderError::Template(error.to_string()),
        });
    }
    let text = String::from_utf8_lossy(&output.0);
    let text = text.trim();
    match text.chars().count() {
        0 => Err(RenderError::Empty),
        n if n > MAX_CHARACTERS => Err(RenderError::TooLong { n }),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_plain_and_different() {
        assert!(WORDS.len() >= 150);
        let mut sorted = WORDS.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), WORDS.len());
        assert!(WORDS.iter().all(|word| word.len() >= 3 && word.chars().all(|c| c.is_ascii_lowercase())));
    }

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let render = |template, seed| render(template, Task::Answer, seed, false).unwrap();
        for template in ["{{ word() }}", "{{ number(1, 1000) }}", "{{ pick(['a','b','c','d','e']) }}"] {
            assert_eq!(render(template, 1), render(template, 1));
            assert!((0..50).any(|seed| render(template, seed) != render(template, 1)), "{template}");
        }
        for seed in 0..50 {
            assert!((2..=4).contains(&render("{{ number(2, 4) }}", seed).parse::<i64>().unwrap()));
        }
    }

    #[test]
    fn texts_cannot_grow_without_bound() {
        let doubling = format!("{{% set x = 'xx' %}}{}", "{% set x = x ~ x %}".repeat(40));
        let nested = "{% for x in ['xx'] %}{% for x in [[x, x]] %}{% for x in [[x, x]] %}{{ x }}{% endfor %}{% endfor %}{% endfor %}";
        for (template, said) in [
            (doubling.as_str(), "unknown statement \"set\""),
            ("{% macro m() %}x{% endmacro %}", "unknown statement \"macro\""),
            ("{%- with x = 1 %}{% endwith %}", "unknown statement \"with\""),
            ("{{ 'x' * 1000000000 }}", "\"*\" in"),
            ("{{ 'x' ~ 'y' }}", "\"~\" in"),
            ("{{ task + task }}", "\"+\" in"),
            ("{{ task | upper }}", "\"|\" in"),
            (
                "{% for a in [1] %}{% for a in [1] %}{% for a in [1] %}{% for a in [1] %}x",
                "4 loops, expected at most 3",
            ),
        ] {
            let error = render(template, Task::Answer, 1, false).unwrap_err().to_string();
            assert!(error.contains(said), "{template}: {error}");
        }
        let long = format!("{{% for a in [1,2,3,4,5,6,7,8,9] %}}{}{{% endfor %}}", "x".repeat(1000));
        assert_eq!(render(&long, Task::Answer, 1, false), Err(RenderError::TooLong { n: MOST_BYTES }));
        assert!(render(nested, Task::Answer, 1, false).is_ok());
    }

    #[test]
    fn what_stands_in_strings_and_comments_is_text() {
        let render = |template| render(template, Task::Answer, 1, false).unwrap();
        assert_eq!(render("{{ 'a + b }} %} \\' c * d' }} 3 * 4{# {% set x #}"), "a + b }} %} ' c * d 3 * 4");
        assert_eq!(render("x {{- pick([\"'y~'\"]) -}} z"), "x'y~'z");
        assert_eq!(render("{%- if task == 'answer' -%} yes {%- endif %}"), "yes");
    }

    #[test]
    fn bad_numbers_are_errors() {
        for template in
            ["{{ number(4, 2) }}", "{{ number(-9223372036854775807, 9223372036854775807) }}", "{{ number() }}"]
        {
            assert!(matches!(render(template, Task::Answer, 1, false), Err(RenderError::Template(_))), "{template}");
        }
    }
}
