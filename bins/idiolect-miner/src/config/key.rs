//! One row of the table of settings.

use std::fmt;

use serde_json::Value;

use super::value::{Raw, Setting};

/// A setting: where it comes from, what it means, how it is read into `C`.
pub struct Key<C> {
    /// Dotted name, as in `axon.port`.
    pub name: &'static str,
    /// What it does, one or two sentences.
    pub doc: &'static str,
    /// What is allowed, where the type alone does not say it.
    pub expected: &'static str,
    /// What a bare number counts, where it is one.
    pub unit: &'static str,
    /// Further spellings of its flag, besides `--NAME`; the first is the one shown in help.
    pub flags: &'static [&'static str],
    /// Further environment variables, besides `IDIOLECT_NAME`.
    pub env: &'static [&'static str],
    /// Its value is never shown.
    pub secret: bool,
    pub(crate) list: bool,
    pub(crate) boolean: bool,
    pub(crate) ops: Ops<C>,
}

/// How a setting gets in and out of its struct.
pub(crate) struct Ops<C> {
    pub(crate) type_name: &'static str,
    pub(crate) read: fn(&mut C, &Raw) -> Result<(), String>,
    pub(crate) show: fn(&C) -> Value,
    pub(crate) ok: Option<fn(&C) -> bool>,
}

impl<C> Key<C> {
    pub(crate) const fn new(name: &'static str, doc: &'static str, ops: Ops<C>) -> Self {
        Self {
            name,
            doc,
            expected: "",
            unit: "",
            flags: &[],
            env: &[],
            secret: false,
            list: false,
            boolean: false,
            ops,
        }
    }

    pub(crate) const fn flags(mut self, flags: &'static [&'static str]) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) const fn env(mut self, env: &'static [&'static str]) -> Self {
        self.env = env;
        self
    }

    pub(crate) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    pub(crate) const fn list(mut self) -> Self {
        self.list = true;
        self
    }

    pub(crate) const fn boolean(mut self) -> Self {
        self.boolean = true;
        self
    }

    /// States what is allowed beyond the type, and how to tell.
    pub(crate) const fn expect(mut self, expected: &'static str, ok: fn(&C) -> bool) -> Self {
        self.expected = expected;
        self.ops.ok = Some(ok);
        self
    }

    /// States what is allowed beyond the type, where rules between settings see to it.
    pub(crate) const fn allows(mut self, expected: &'static str) -> Self {
        self.expected = expected;
        self
    }

    pub(crate) const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// Returns the name of its type.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        self.ops.type_name
    }

    /// Returns the flags it can be given by, without dashes, the one to show first.
    pub fn all_flags(&self) -> impl Iterator<Item = &'static str> {
        let own = (!self.flags.contains(&self.name)).then_some(self.name);
        self.flags.iter().copied().chain(own)
    }

    /// Returns the environment variables it is read from, the strongest first.
    pub fn all_env(&self) -> impl Iterator<Item = String> {
        let own = format!("IDIOLECT_{}", self.name.replace('.', "_").to_ascii_uppercase());
        std::iter::once(own).chain(self.env.iter().map(|e| (*e).to_owned()))
    }

    /// Reads a value into `target`, which stays as it was where the value is not allowed.
    pub(crate) fn read(&self, target: &mut C, raw: &Raw) -> Result<(), String>
    where
        C: Clone,
    {
        let mut read = target.clone();
        (self.ops.read)(&mut read, raw)?;
        match self.ops.ok {
            Some(ok) if !ok(&read) => Err(format!("is {}, expected {}", shown(&self.show(&read)), self.expected)),
            _ => {
                *target = read;
                Ok(())
            }
        }
    }

    /// Returns the value in `source`; secrets are hidden.
    pub fn show(&self, source: &C) -> Value {
        let value = (self.ops.show)(source);
        if self.secret && !value.is_null() { Value::from("(hidden)") } else { value }
    }

    /// Returns the value as one line of text.
    pub fn show_text(&self, source: &C) -> String {
        plain(&self.show(source))
    }
}

/// Writes a value for an error message, in which nothing could be overlooked.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => value.to_string(),
        Value::String(text) if text.is_empty() => value.to_string(),
        _ => plain(value),
    }
}

/// Writes a value as one would write it on the command line.
#[must_use]
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

impl<C> fmt::Debug for Key<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes the operations of a field of type `T`, given two ways to reach it.
pub(crate) const fn ops<C, T: Setting>(
    _get: fn(&C) -> &T,
    read: fn(&mut C, &Raw) -> Result<(), String>,
    show: fn(&C) -> Value,
) -> Ops<C> {
    Ops { type_name: T::TYPE, read, show, ok: None }
}

/// Makes a [`Key`] for a field: `key!(Config: axon.port, "What it does.")`.
macro_rules! key {
    (@new $c:ty, $name:expr, $doc:expr, $($field:ident).+) => {
        $crate::config::key::Key::<$c>::new(
            $name,
            $doc,
            $crate::config::key::ops(
                |c: &$c| &c.$($field).+,
                |c: &mut $c, raw| {
                    c.$($field).+ = $crate::config::value::Setting::read(raw)?;
                    Ok(())
                },
                |c: &$c| $crate::config::value::Setting::show(&c.$($field).+),
            ),
        )
    };
    ($c:ty: $section:ident.$field:ident, $doc:expr) => {
        $crate::config::key::key!(@new $c, concat!(stringify!($section), ".", stringify!($field)), $doc, $section.$field)
    };
    ($c:ty: $field:ident, $doc:expr) => {
        $crate::config::key::key!(@new $c, stringify!($field), $doc, $field)
    };
}
pub(crate) use key;
