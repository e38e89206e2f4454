//! From written values to typed settings, and back.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use idiolect_backend::{ChainSpec, Preset};
use idiolect_protocol::Hotkey;
use serde_json::Value;
use toml::Spanned;
use toml::de::DeValue;

/// A value as it was written somewhere.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    /// A word from a flag, the environment or a preset, whose type is open.
    Word(String),
    /// A text from a file.
    Text(String),
    /// A whole number from a file.
    Int(i128),
    /// A number with a fraction from a file.
    Float(f64),
    /// A truth value from a file.
    Bool(bool),
    /// A list: of a file, or of a flag given more than once.
    List(Vec<Self>),
    /// Something that no setting takes; holds its kind.
    Other(&'static str),
}

impl Raw {
    pub(crate) fn word(text: impl Into<String>) -> Self {
        Self::Word(text.into())
    }

    pub(crate) fn from_toml(value: &Spanned<DeValue<'_>>) -> Self {
        match value.get_ref() {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(i) => i128::from_str_radix(&i.as_str().replace('_', ""), i.radix())
                .map_or(Self::Other("number out of range"), Self::Int),
            DeValue::Float(f) => f.as_str().replace('_', "").parse().map_or(Self::Other("number"), Self::Float),
            DeValue::Boolean(b) => Self::Bool(*b),
            DeValue::Array(items) => Self::List(items.iter().map(Self::from_toml).collect()),
            DeValue::Datetime(_) => Self::Other("date"),
            DeValue::Table(_) => Self::Other("table"),
        }
    }

    /// Says what stands there, for an error message.
    fn found(&self) -> String {
        match self {
            Self::Word(text) => format!("{text:?}"),
            Self::Text(text) => format!("the text {text:?}"),
            Self::Int(i) => format!("the number {i}"),
            Self::Float(f) => format!("the number {f}"),
            Self::Bool(b) => format!("{b}"),
            Self::List(_) => "a list".to_owned(),
            Self::Other(kind) => format!("a {kind}"),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A type that settings can have.
pub(crate) trait Setting: Sized {
    /// What the reference calls the type.
    const TYPE: &'static str;

    /// Reads a value; the error says what was expected.
    fn read(raw: &Raw) -> Result<Self, String>;

    /// Gives the value back for display.
    fn show(&self) -> Value;
}

fn unexpected<T: Setting>(raw: &Raw) -> String {
    format!("is {}, expected {}", raw.found(), T::TYPE)
}

impl Setting for bool {
    const TYPE: &'static str = "true or false";

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Bool(b) => Ok(*b),
            Raw::Word(word) => match word.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(true),
                "false" | "no" | "off" | "0" => Ok(false),
                _ => Err(unexpected::<Self>(raw)),
            },
            _ => Err(unexpected::<Self>(raw)),
        }
    }

    fn show(&self) -> Value {
        Value::from(*self)
    }
}

macro_rules! whole_numbers {
    ($($t:ty),*) => {$(
        impl Setting for $t {
            const TYPE: &'static str = "whole number";

            fn read(raw: &Raw) -> Result<Self, String> {
                let value = match raw {
                    Raw::Int(i) => Some(*i),
                    Raw::Word(word) => word.trim().replace('_', "").parse::<i128>().ok(),
                    _ => None,
                };
                let value = value.ok_or_else(|| unexpected::<Self>(raw))?;
                Self::try_from(value).map_err(|_| format!("is {value}, expected {} to {}", Self::MIN, Self::MAX))
            }

            fn show(&self) -> Value {
                Value::from(*self)
            }
        }
    )*};
}
whole_numbers!(u8, u16, u32, u64, usize);

impl Setting for NonZeroUsize {
    const TYPE: &'static str = "whole number";

    fn read(raw: &Raw) -> Result<Self, String> {
        Self::new(usize::read(raw)?).ok_or_else(|| "is 0, expected at least 1".to_owned())
    }

    fn show(&self) -> Value {
        Value::from(self.get())
    }
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Setting for $t {
            const TYPE: &'static str = "number";

            fn read(raw: &Raw) -> Result<Self, String> {
                let value = match raw {
                    #[expect(clippy::cast_precision_loss, reason = "settings are small numbers")]
                    Raw::Int(i) => Some(*i as f64),
                    Raw::Float(f) => Some(*f),
                    Raw::Word(word) => word.trim().parse::<f64>().ok(),
                    _ => None,
                };
                let value = value.filter(|v| v.is_finite()).ok_or_else(|| unexpected::<Self>(raw))?;
                #[allow(clippy::cast_possible_truncation, reason = "settings are small numbers")]
                Ok(value as Self)
            }

            fn show(&self) -> Value {
                // By way of its text, so that 0.7f32 reads 0.7.
                self.to_string().parse::<f64>().map_or(Value::Null, Value::from)
            }
        }
    )*};
}
numbers!(f32, f64);

impl Setting for String {
    const TYPE: &'static str = "text";

    fn read(raw: &Raw) -> Result<Self, String> {
        raw.text().map(str::to_owned).ok_or_else(|| unexpected::<Self>(raw))
    }

    fn show(&self) -> Value {
        Value::from(self.as_str())
    }
}

impl Setting for PathBuf {
    const TYPE: &'static str = "path";

    fn read(raw: &Raw) -> Result<Self, String> {
        raw.text().filter(|t| !t.is_empty()).map(Self::from).ok_or_else(|| unexpected::<Self>(raw))
    }

    fn show(&self) -> Value {
        Value::from(self.display().to_string())
    }
}

macro_rules! parsed {
    ($t:ty, $name:literal) => {
        impl Setting for $t {
            const TYPE: &'static str = $name;

            fn read(raw: &Raw) -> Result<Self, String> {
                raw.text().and_then(|t| t.trim().parse().ok()).ok_or_else(|| unexpected::<Self>(raw))
            }

            fn show(&self) -> Value {
                Value::from(self.to_string())
            }
        }
    };
}
parsed!(IpAddr, "IP address");
parsed!(SocketAddr, "ADDRESS:PORT");

/// A span of time: a number of seconds, or a text with a unit (`250ms`, `10s`, `5m`, `2h`, `30d`).
impl Setting for Duration {
    const TYPE: &'static str = "duration";

    fn read(raw: &Raw) -> Result<Self, String> {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a setting are small numbers")]
        let seconds = match raw {
            Raw::Int(i) => Some(*i as f64),
            Raw::Float(f) => Some(*f),
            Raw::Word(text) | Raw::Text(text) => seconds(text.trim()),
            _ => None,
        };
        seconds.and_then(|s| Self::try_from_secs_f64(s).ok()).ok_or_else(|| {
            format!("is {}, expected a duration such as 10s, 250ms, 5m, 2h, 30d or a number of seconds", raw.found())
        })
    }

    fn show(&self) -> Value {
        Value::from(duration_text(*self))
    }
}

/// Reads a span of time as settings are written: `10s`, `250ms`, `5m`, or a number of seconds such as `0.5`.
///
/// # Errors
/// What stands there instead, and what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    Duration::read(&Raw::word(text))
}

fn seconds(text: &str) -> Option<f64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    Some(number.trim().parse::<f64>().ok()? * scale)
}

/// Writes a duration as settings are written: `10s`, `250ms`, `30d`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        m if m % 86_400_000 == 0 => format!("{}d", m / 86_400_000),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m % 1000 == 0 => format!("{}s", m / 1000),
        m => format!("{m}ms"),
    }
}

/// A number of bytes: a whole number, or a text with a unit (`64KiB`, `1MiB`, `2GiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Setting for Bytes {
    const TYPE: &'static str = "size";

    fn read(raw: &Raw) -> Result<Self, String> {
        let bytes = match raw {
            Raw::Int(i) => u64::try_from(*i).ok(),
            Raw::Word(text) | Raw::Text(text) => bytes(text.trim()),
            _ => None,
        };
        bytes
            .map(Self)
            .ok_or_else(|| format!("is {}, expected a size such as 64KiB, 1MiB or a number of bytes", raw.found()))
    }

    fn show(&self) -> Value {
        let text = match self.0 {
            0 => "0".to_owned(),
            b if b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
            b if b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
            b if b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
            b => return Value::from(b),
        };
        Value::from(text)
    }
}

fn bytes(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    number.trim().parse::<u64>().ok()?.checked_mul(scale)
}

/// A setting that may be absent: `off`, `none` or nothing at all.
impl<T: Setting> Setting for Option<T> {
    const TYPE: &'static str = T::TYPE;

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Word(text) | Raw::Text(text) if matches!(text.as_str(), "" | "off" | "none") => Ok(None),
            Raw::Bool(false) => Ok(None),
            _ => T::read(raw).map(Some),
        }
    }

    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, Setting::show)
    }
}

impl Setting for Preset {
    const TYPE: &'static str = "llamacpp or vllm or mistralrs";

    fn read(raw: &Raw) -> Result<Self, String> {
        raw.text().and_then(|text| text.parse().ok()).ok_or_else(|| unexpected::<Self>(raw))
    }

    fn show(&self) -> Value {
        Value::from(self.as_str())
    }
}

/// A preset's name, or the chain as JSON.
impl Setting for ChainSpec {
    const TYPE: &'static str = "`llamacpp`, `vllm`, `mistralrs` or JSON";

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().ok_or_else(|| unexpected::<Self>(raw))?;
        let chain = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| format!("is no chain of stages: {error}"))?
        } else {
            Self::from(text.parse::<Preset>().map_err(|_| unexpected::<Self>(raw))?)
        };
        chain.validate().map_err(|error| format!("is no chain of stages: {error}"))?;
        Ok(chain)
    }

    fn show(&self) -> Value {
        match serde_json::to_value(self) {
            Ok(Value::String(preset)) => Value::String(preset),
            Ok(chain) => Value::String(chain.to_string()),
            Err(_) => Value::Null,
        }
    }
}

impl Setting for Hotkey {
    const TYPE: &'static str = "hotkey";

    fn read(raw: &Raw) -> Result<Self, String> {
        let expected = "expected a hotkey's address";
        let text = raw.text().ok_or_else(|| format!("is {}, {expected}", raw.found()))?;
        text.parse().map_err(|error| format!("is {text:?}, {expected}: {error}"))
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// A list; in a word from flag or environment its items stand between commas. Every bad item is told.
impl<T: Setting> Setting for Vec<T> {
    const TYPE: &'static str = "list";

    fn read(raw: &Raw) -> Result<Self, String> {
        let mut items = Self::new();
        let mut problems = Vec::new();
        let mut take = |raw: &Raw| match T::read(raw) {
            Ok(item) => items.push(item),
            Err(problem) => {
                problems.push(problem.strip_prefix("is ").map_or(problem.clone(), |rest| format!("holds {rest}")));
            }
        };
        let given = match raw {
            Raw::List(list) => list.as_slice(),
            Raw::Word(_) => std::slice::from_ref(raw),
            _ => return Err(format!("is {}, expected a list", raw.found())),
        };
        for item in given {
            match item {
                Raw::Word(words) => {
                    words.split(',').map(str::trim).filter(|w| !w.is_empty()).for_each(|w| take(&Raw::word(w)));
                }
                _ => take(item),
            }
        }
        if problems.is_empty() { Ok(items) } else { Err(problems.join("; ")) }
    }

    fn show(&self) -> Value {
        Value::from(self.iter().map(Setting::show).collect::<Vec<_>>())
    }
}

/// Implements [`Setting`] for an enum of plain words.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// Every one, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the word that stands in configuration.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl $crate::config::value::Setting for $name {
            const TYPE: &'static str = $crate::config::value::words!(@list $($word)*);

            fn read(raw: &$crate::config::value::Raw) -> Result<Self, String> {
                use $crate::config::value::Raw;
                match raw {
                    Raw::Word(text) | Raw::Text(text) => match text.as_str() {
                        $($word => Ok(Self::$variant),)*
                        _ => Err(format!("is {text:?}, expected {}", Self::TYPE)),
                    },
                    _ => Err(format!("is not a word, expected {}", Self::TYPE)),
                }
            }

            fn show(&self) -> serde_json::Value {
                serde_json::Value::from(self.as_str())
            }
        }
    };
    (@list $only:literal) => { $only };
    (@list $first:literal $($rest:literal)+) => { concat!($first $(, " or ", $rest)+) };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Setting + PartialEq + std::fmt::Debug>(raw: Raw, expected: Result<T, &str>) {
        match (T::read(&raw), expected) {
            (Ok(read), Ok(expected)) => assert_eq!(read, expected),
            (Err(message), Err(expected)) => assert_eq!(message, expected),
            (read, expected) => panic!("{raw:?}: read {read:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn chains() {
        check(Raw::word("vllm"), Ok(ChainSpec::from(Preset::Vllm)));
        check(Raw::word("none"), Ok(None::<ChainSpec>));
        let text = r#"{"stages":[{"stage":"top_k","k":7}]}"#;
        let chain = ChainSpec::read(&Raw::word(text)).unwrap();
        assert_eq!(chain.show(), Value::from(text));
        assert_eq!(ChainSpec::from(Preset::LlamaCpp).show(), Value::from("llamacpp"));
        check::<ChainSpec>(Raw::word("best"), Err("is \"best\", expected `llamacpp`, `vllm`, `mistralrs` or JSON"));
        let bad = r#"{"stages":[{"stage":"top_p","p":7}]}"#;
        check::<ChainSpec>(Raw::word(bad), Err("is no chain of stages: top_p.p is 7, expected above 0 and at most 1"));
    }

    #[test]
    fn truth() {
        check(Raw::word("on"), Ok(true));
        check(Raw::Bool(false), Ok(false));
        check::<bool>(Raw::Text("true".into()), Err("is the text \"true\", expected true or false"));
    }

    #[test]
    fn numbers() {
        check(Raw::word("8_091"), Ok(8091_u16));
        check::<u16>(Raw::Int(70_000), Err("is 70000, expected 0 to 65535"));
        check::<u16>(Raw::Text("8091".into()), Err("is the text \"8091\", expected whole number"));
        check(Raw::Int(1), Ok(1.0_f32));
        check::<f32>(Raw::Float(f64::NAN), Err("is the number NaN, expected number"));
        assert_eq!(0.7_f32.show(), Value::from(0.7));
    }

    #[test]
    fn durations() {
        check(Raw::word("250ms"), Ok(Duration::from_millis(250)));
        check(Raw::Int(10), Ok(Duration::from_secs(10)));
        check(Raw::Text("30d".into()), Ok(Duration::from_secs(30 * 86400)));
        assert!(Duration::read(&Raw::Int(-1)).is_err());
        assert!(Duration::read(&Raw::word("soon")).is_err());
        for text in ["0s", "250ms", "90s", "5m", "2h", "30d"] {
            assert_eq!(duration_text(Duration::read(&Raw::word(text)).expect(text)), text);
        }
    }

    #[test]
    fn sizes() {
        check(Raw::word("1MiB"), Ok(Bytes(1 << 20)));
        check(Raw::Int(4096), Ok(Bytes(4096)));
        assert!(Bytes::read(&Raw::word("1mib")).is_err());
        assert!(Bytes::read(&Raw::word("99999999999GiB")).is_err());
        assert_eq!(Bytes(65536).show(), Value::from("64KiB"));
    }

    #[test]
    fn lists_and_absence() {
        check(Raw::word("a, b,"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        check(Raw::List(vec![Raw::word("a,b"), Raw::word("c")]), Ok(["a", "b", "c"].map(str::to_owned).to_vec()));
        check(Raw::List(vec![Raw::Text("a,b".into())]), Ok(vec!["a,b".to_owned()]));
        check(Raw::word("off"), Ok(None::<u16>));
        check(Raw::word("7"), Ok(Some(7_u16)));
    }
}
