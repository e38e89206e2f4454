//! Where a history of replies lies that several miners share.

use std::fmt;
use std::path::PathBuf;

use idiolect_uniqueness::PostgresHistory;
use serde_json::Value;

use super::value::{Raw, Setting};

/// Where a history of replies lies that several miners share. What holds a password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum SharedHistory {
    /// An SQLite file, for miners on one machine.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(DatabaseUrl),
}

/// The URL of a database, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    url: String,
    shown: String,
}

impl DatabaseUrl {
    /// Returns the URL as it was given.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SharedHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Without the password.
impl fmt::Display for SharedHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => f.write_str(&url.shown),
        }
    }
}

impl std::str::FromStr for SharedHistory {
    type Err = String;

    /// Reads a path or an URL; the error does not hold it.
    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected postgres://USER@HOST/DATABASE or the path of an SQLite file";
        let text = text.trim();
        let is_database = text.starts_with("postgres://") || text.starts_with("postgresql://");
        if is_database {
            let shown = PostgresHistory::describe(text).map_err(|error| {
                let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                format!("is no URL of a database: {why}; {EXPECTED}")
            })?;
            return Ok(Self::Postgres(DatabaseUrl { url: text.to_owned(), shown }));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!("is an URL of {scheme}, {EXPECTED}"));
        }
        match text.strip_prefix("sqlite:").unwrap_or(text) {
            "" => Err(format!("is empty, {EXPECTED}")),
            path => Ok(Self::Sqlite(PathBuf::from(path))),
        }
    }
}

impl Setting for SharedHistory {
    const TYPE: &'static str = "path or `postgres://…`";

    fn read(raw: &Raw) -> Result<Self, String> {
        String::read(raw)?.parse()
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_kept_out_of_sight() {
        for url in [
            "postgres://miner:hunter2@db.example:5433/idiolect?sslmode=require",
            "postgresql://miner@db.example:5433/idiolect?password=hunter2",
        ] {
            let place: SharedHistory = url.parse().expect(url);
            assert_eq!(place.show(), "postgres://miner@db.example:5433/idiolect");
            assert!(!format!("{place:?} {place}").contains("hunter2"), "{place:?}");
            assert!(matches!(place, SharedHistory::Postgres(known) if known.expose() == url));
        }
        for bad in [
            "postgres://u:hunter2@[::1/x",
            "mysql://u:hunter2@h/x",
            "postgres://u:hunter2@h:99999/x",
            "postgres://u:hunter2@h/x?sslmode=hunter2",
        ] {
            let error = bad.parse::<SharedHistory>().expect_err(bad);
            assert!(error.contains("expected postgres://USER@HOST/DATABASE"), "{error}");
            assert!(!error.contains("u:hunter2"), "{error}");
        }
    }

    #[test]
    fn all_else_is_a_file() {
        for (text, path) in [("/var/lib/h.sqlite", "/var/lib/h.sqlite"), ("sqlite:h.sqlite", "h.sqlite")] {
            assert_eq!(text.parse(), Ok(SharedHistory::Sqlite(path.into())));
        }
        assert!("sqlite:".parse::<SharedHistory>().is_err());
    }
}
