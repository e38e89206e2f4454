//! Names of operators, or globs for several: `layout.*`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name, in which each `*` stands for any characters or none.
///
/// ```
/// use idiolect_mutation::NamePattern;
///
/// let pattern: NamePattern = "layout.*".parse()?;
/// assert!(pattern.matches("layout.list") && !pattern.matches("angle.layout"));
/// # Ok::<(), idiolect_mutation::BadPattern>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// No operator can have such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}, expected an operator's name or a pattern like layout.*")]
pub struct BadPattern(String);

impl NamePattern {
    /// Returns the pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says whether it stands for this name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut left) = name.strip_prefix(head) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        // The last part must end the name; what stands between is taken where it comes first.
        let tail = parts.pop().unwrap_or_default();
        for part in parts {
            let Some(at) = left.find(part) else { return false };
            left = &left[at + part.len()..];
        }
        left.ends_with(tail)
    }
}

impl FromStr for NamePattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-*".contains(c);
        if !text.is_empty() && text.len() <= 100 && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadPattern(text.to_owned()))
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(pattern.parse::<NamePattern>().unwrap().matches(name), expected, "{pattern} {name}");
    }

    #[test]
    fn stars_stand_for_any_characters() {
        check("angle.causes", "angle.causes", true);
        check("angle.causes", "angle.causes2", false);
        check("angle.*", "angle.causes", true);
        check("angle.*", "angle.", true);
        check("angle.*", "triangle.x", false);
        check("*.list", "layout.list", true);
        check("*.list", "layout.lists", false);
        check("*a*b*", "xaxbx", true);
        check("*a*b*", "xbxax", false);
        check("a*a", "a", false);
        check("a*a", "aa", true);
        check("*", "", true);
    }

    #[test]
    fn other_marks_are_no_patterns() {
        for text in ["", "a b", "layout.?", "ä"] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
    }
}
