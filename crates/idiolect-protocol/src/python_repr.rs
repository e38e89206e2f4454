//! JSON values as Python's `str()` prints them: bittensor signs the hash of that text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use serde_json::value::RawValue;

#[rustfmt::skip]
mod tables;

use tables::{BASE, OTHERS};

/// Which characters Python's `repr()` prints as they are; it depends on the Unicode tables of the Python that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnicodeTable {
    /// Python 3.11: Unicode 14.0.
    Python311,
    /// Another Python: its place in `OTHERS`.
    #[doc(hidden)]
    Other(usize),
}

/// A version's differences to the base table, in inclusive ranges.
struct Difference {
    #[cfg_attr(not(test), expect(dead_code, reason = "names the row for readers and the test"))]
    python: &'static str,
    printable: &'static [(u32, u32)],
    non_printable: &'static [(u32, u32)],
}

impl UnicodeTable {
    /// Returns all tables, the likeliest first.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Python311).chain((0..OTHERS.len()).rev().map(Self::Other))
    }

    fn is_printable(self, c: char) -> bool {
        match c {
            ' '..='~' => return true,
            '\0'..='\x7f' => return false,
            _ => {}
        }
        let in_base = !contains(BASE, c);
        match self {
            Self::Python311 => in_base,
            Self::Other(i) => OTHERS.get(i).map_or(in_base, |table| {
                (in_base && !contains(table.non_printable, c)) || contains(table.printable, c)
            }),
        }
    }
}

fn contains(ranges: &[(u32, u32)], c: char) -> bool {
    let c = u32::from(c);
    let i = ranges.partition_point(|(first, _)| *first <= c);
    i > 0 && c <= ranges[i - 1].1
}

/// A JSON value with what Python's `json` module keeps and `serde_json` does not: integers of any size, and integers
/// apart from floats.
#[derive(Clone, Debug, PartialEq)]
pub enum PyValue<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A decimal integer without leading zeros.
    Int(Cow<'a, str>),
    /// A float.
    Float(f64),
    /// A `str`.
    Str(Cow<'a, str>),
    /// A `list`.
    List(Vec<Self>),
    /// A `dict`, in order of first insertion.
    Dict(Vec<(String, Self)>),
}

/// Why a JSON value has no Python text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PyValueError {
    /// Not JSON, nested too deeply, or with half a surrogate pair in a text.
    #[error("not a JSON value")]
    Json(#[from] serde_json::Error),
    /// Python refuses integers of more than 4300 digits.
    #[error("an integer of {0} digits")]
    LongInteger(usize),
    /// More than 64 lists and objects within each other.
    #[error("nested too deeply")]
    Depth,
}

/// Most digits that Python reads as an integer.
const MAX_INT_DIGITS: usize = 4300;
/// Lists and objects that may stand within each other.
const MAX_DEPTH: usize = 64;

impl<'a> PyValue<'a> {
    /// Reads a value out of JSON text, as `json.loads` does.
    ///
    /// # Errors
    /// [`PyValueError`].
    pub fn from_json(text: &'a str) -> Result<Self, PyValueError> {
        Self::read(serde_json::from_str(text)?, MAX_DEPTH)
    }

    /// Reads a checked value. The text of every level is scanned once more for the level below.
    fn read(raw: &'a RawValue, depth: usize) -> Result<Self, PyValueError> {
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'n') => Self::None,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => Self::Str(Cow::Owned(serde_json::from_str(text)?)),
            Some(b'[' | b'{') if depth == 0 => return Err(PyValueError::Depth),
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                Self::List(items.into_iter().map(|item| Self::read(item, depth - 1)).collect::<Result<_, _>>()?)
            }
            Some(b'{') => Self::Dict(dict_items(text, depth - 1)?),
            _ => Self::from_number(text)?,
        })
    }

    fn from_number(text: &'a str) -> Result<Self, PyValueError> {
        if text.contains(['.', 'e', 'E']) {
            // The text is a checked JSON number, so it parses; what is too large becomes infinity in Python as well.
            return Ok(Self::Float(text.parse().unwrap_or(f64::NAN)));
        }
        let n_digits = text.trim_start_matches('-').len();
        if n_digits > MAX_INT_DIGITS {
            return Err(PyValueError::LongInteger(n_digits));
        }
        Ok(Self::Int(Cow::Borrowed(if text == "-0" { "0" } else { text })))
    }
}

fn dict_items(text: &str, depth: usize) -> Result<Vec<(String, PyValue<'_>)>, PyValueError> {
    let mut items: Vec<(String, PyValue<'_>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (key, raw) in crate::json_object::fields(text)? {
        let value = PyValue::read(raw, depth)?;
        match places.get(&key) {
            // A key that comes again keeps its place and takes the new value.
            Some(&place) => items[place].1 = value,
            None => {
                places.insert(key.clone(), items.len());
                items.push((key, value));
            }
        }
    }
    Ok(items)
}

/// Something that Python can print.
pub trait PyText {
    /// Appends `str(self)`.
    fn write_str(&self, out: &mut String, table: UnicodeTable);
}

impl PyText for PyValue<'_> {
    fn write_str(&self, out: &mut String, table: UnicodeTable) {
        match self {
            Self::Str(text) => out.push_str(text),
            other => write_repr(other, out, table),
        }
    }
}

/// A list of strings, as roles and messages are.
impl PyText for [String] {
    fn write_str(&self, out: &mut String, table: UnicodeTable) {
        write_items(out, '[', ']', self, |out, text| write_str_repr(text, out, table));
    }
}

fn write_repr(value: &PyValue<'_>, out: &mut String, table: UnicodeTable) {
    match value {
        PyValue::None => out.push_str("None"),
        PyValue::Bool(true) => out.push_str("True"),
        PyValue::Bool(false) => out.push_str("False"),
        PyValue::Int(digits) => out.push_str(digits),
        PyValue::Float(value) => write_float(*value, out),
        PyValue::Str(text) => write_str_repr(text, out, table),
        PyValue::List(items) => write_items(out, '[', ']', items, |out, item| write_repr(item, out, table)),
        PyValue::Dict(items) => write_items(out, '{', '}', items, |out, (key, item)| {
            write_str_repr(key, out, table);
            out.push_str(": ");
            write_repr(item, out, table);
        }),
    }
}

fn write_items<T>(out: &mut String, open: char, close: char, items: &[T], mut write: impl FnMut(&mut String, &T)) {
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write(out, item);
    }
    out.push(close);
}

/// `repr()` of a `str`: in single quotes, unless it has single quotes and no double ones.
fn write_str_repr(text: &str, out: &mut String, table: UnicodeTable) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.reserve(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if table.is_printable(c) => out.push(c),
            c => write_escape(u32::from(c), out),
        }
    }
    out.push(quote);
}

fn write_escape(code: u32, out: &mut String) {
    // Writing into a `String` cannot fail.
    let _ = match code {
        0..0x100 => write!(out, "\\x{code:02x}"),
        0x100..0x1_0000 => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// `repr()` of a `float`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn write_float(value: f64, out: &mut String) {
    if value.is_nan() {
        return out.push_str("nan");
    }
    if value.is_sign_negative() {
        out.push('-');
    }
    if value.is_infinite() {
        return out.push_str("inf");
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs());
        return;
    }
    let plain = value.abs().to_string();
    out.push_str(&plain);
    if !plain.contains('.') {
        out.push_str(".0");
    }
}

#[cfg(test)]
mod tests;
