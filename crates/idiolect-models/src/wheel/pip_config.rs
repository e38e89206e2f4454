//! Reads which package indexes the user's pip or uv would ask.

use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::config::DEFAULT_INDEX;

/// What pip and uv are configured with, as far as it matters here.
#[derive(Debug, Default)]
pub(crate) struct PipConfig {
    pub(crate) indexes: Vec<Url>,
    pub(crate) find_links: Vec<PathBuf>,
    pub(crate) ca_files: Vec<PathBuf>,
}

/// One layer of settings: variables, or one file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layer {
    index: Option<String>,
    extra: Vec<String>,
    find_links: Vec<String>,
    cert: Option<String>,
    no_index: bool,
}

pub(crate) fn read(get: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> PipConfig {
    let mut layers = vec![pip_variables(get), uv_variables(get)];
    layers.extend(
        pip_files(get, home).iter().rev().filter_map(|file| Some(parse_pip_file(&std::fs::read_to_string(file).ok()?))),
    );
    layers.extend(uv_files(get, home).iter().filter_map(|file| parse_uv_file(&std::fs::read_to_string(file).ok()?)));
    combine(layers)
}

/// Layers come strongest first.
fn combine(layers: Vec<Layer>) -> PipConfig {
    let mut config = PipConfig::default();
    let add = |text: &str, indexes: &mut Vec<Url>| match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") && !indexes.contains(&url) => indexes.push(url),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "a configured package index is no address; skipped"),
    };
    let no_index = layers.iter().any(|layer| layer.no_index);
    if !no_index {
        let main = layers.iter().find_map(|layer| layer.index.as_deref()).unwrap_or(DEFAULT_INDEX);
        add(main, &mut config.indexes);
        for extra in layers.iter().flat_map(|layer| &layer.extra) {
            add(extra, &mut config.indexes);
        }
    }
    for layer in &layers {
        let folders = layer.find_links.iter().filter_map(|place| local_folder(place));
        config.find_links.extend(folders);
    }
    config.ca_files = layers.iter().filter_map(|layer| layer.cert.as_ref().map(PathBuf::from)).collect();
    config.ca_files.dedup();
    config
}

fn local_folder(place: &str) -> Option<PathBuf> {
    match place.strip_prefix("file://") {
        Some(path) => Some(path.into()),
        None => (!place.contains("://")).then(|| place.into()),
    }
}

fn words(text: Option<String>) -> Vec<String> {
    text.map(|text| text.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

fn pip_variables(get: &dyn Fn(&str) -> Option<String>) -> Layer {
    Layer {
        index: get("PIP_INDEX_URL"),
        extra: words(get("PIP_EXTRA_INDEX_URL")),
        find_links: words(get("PIP_FIND_LINKS")),
        cert: get("PIP_CERT").or_else(|| get("REQUESTS_CA_BUNDLE")),
        no_index: get("PIP_NO_INDEX").is_some_and(|value| is_true(&value)),
    }
}

fn uv_variables(get: &dyn Fn(&str) -> Option<String>) -> Layer {
    let mut extra = words(get("UV_INDEX"));
    extra.extend(words(get("UV_EXTRA_INDEX_URL")));
    Layer {
        index: get("UV_DEFAULT_INDEX").or_else(|| get("UV_INDEX_URL")).map(|entry| unnamed(&entry)),
        extra: extra.iter().map(|entry| unnamed(entry)).collect(),
        find_links: get("UV_FIND_LINKS").map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default(),
        cert: None,
        no_index: get("UV_NO_INDEX").is_some_and(|value| is_true(&value)),
    }
}

/// uv allows `name=address`.
fn unnamed(entry: &str) -> String {
    match entry.split_once('=') {
        Some((name, url)) if !name.contains([':', '/']) => url.to_owned(),
        _ => entry.to_owned(),
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on" | "t" | "y")
}

/// pip's files, weakest first: global, user (legacy, then new), virtual environment, `PIP_CONFIG_FILE`.
fn pip_files(get: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> Vec<PathBuf> {
    let named = get("PIP_CONFIG_FILE").map(PathBuf::from);
    if named.as_deref() == Some(Path::new("/dev/null")) {
        return Vec::new();
    }
    let mut files: Vec<PathBuf> = vec!["/etc/xdg/pip/pip.conf".into(), "/etc/pip.conf".into()];
    if let Some(home) = home {
        let config_home = get("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        files.push(home.join(".pip/pip.conf"));
        files.push(home.join("Library/Application Support/pip/pip.conf"));
        files.push(config_home.join("pip/pip.conf"));
    }
    files.extend(get("APPDATA").map(|folder| Path::new(&folder).join("pip/pip.ini")));
    files.extend(get("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("pip.conf")));
    files.extend(named);
    files
}

/// uv's files, strongest first.
fn uv_files(get: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> Vec<PathBuf> {
    if let Some(named) = get("UV_CONFIG_FILE") {
        return vec![named.into()];
    }
    let config_home = get("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".config")));
    let user = config_home.map(|folder| folder.join("uv/uv.toml"));
    user.into_iter().chain(["/etc/uv/uv.toml".into()]).collect()
}

/// The INI dialect of pip: `[global]` counts for every command, `[download]` for ours; values continue on indented lines.
fn parse_pip_file(text: &str) -> Layer {
    let mut pairs: Vec<(bool, String, String)> = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim().to_ascii_lowercase();
        } else if line.starts_with([' ', '\t']) && !pairs.is_empty() {
            if let Some((.., value)) = pairs.last_mut() {
                value.push(' ');
                value.push_str(trimmed);
            }
        } else if let Some((key, value)) = trimmed.split_once(['=', ':'])
            && matches!(section.as_str(), "global" | "download")
        {
            let key = key.trim().to_ascii_lowercase().replace('_', "-");
            pairs.push((section == "download", key, value.trim().to_owned()));
        }
    }
    let find = |wanted: &str| {
        let of = |own: bool| pairs.iter().rev().find(|(is_own, key, _)| *is_own == own && key == wanted);
        of(true).or_else(|| of(false)).map(|(.., value)| value.clone())
    };
    Layer {
        index: find("index-url").filter(|value| !value.is_empty()),
        extra: words(find("extra-index-url")),
        find_links: words(find("find-links")),
        cert: find("cert").filter(|value| !value.is_empty()),
        no_index: find("no-index").is_some_and(|value| is_true(&value)),
    }
}

/// `uv.toml`: `index-url`, `extra-index-url`, `[[index]]`, and the same under `[pip]`.
fn parse_uv_file(text: &str) -> Option<Layer> {
    let table: toml::Table = text
        .parse()
        .inspect_err(|error: &toml::de::Error| {
            tracing::warn!(error = error.message(), "uv.toml cannot be read; skipped")
        })
        .ok()?;
    let mut layer = Layer::default();
    for table in [Some(&table), table.get("pip").and_then(toml::Value::as_table)].into_iter().flatten() {
        let text = |value: &toml::Value| value.as_str().map(str::to_owned);
        let list = |key: &str| -> Vec<String> {
            table
                .get(key)
                .and_then(toml::Value::as_array)
                .map(|items| items.iter().filter_map(text).collect())
                .unwrap_or_default()
        };
        for index in table.get("index").and_then(toml::Value::as_array).into_iter().flatten() {
            let Some(url) = index.get("url").and_then(text) else { continue };
            if index.get("default").and_then(toml::Value::as_bool) == Some(true) {
                layer.index.get_or_insert(url);
            } else if index.get("explicit").and_then(toml::Value::as_bool) != Some(true) {
                layer.extra.push(url);
            }
        }
        if let Some(url) = table.get("index-url").and_then(text) {
            layer.index.get_or_insert(url);
        }
        layer.extra.extend(list("extra-index-url"));
        layer.find_links.extend(list("find-links"));
        layer.no_index |= table.get("no-index").and_then(toml::Value::as_bool) == Some(true);
    }
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> PipConfig {
        read(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()), None)
    }

    fn urls(config: &PipConfig) -> Vec<&str> {
        config.indexes.iter().map(Url::as_str).collect()
    }

    #[test]
    fn variables_of_pip_win_over_those_of_uv() {
        let found = config(&[
            ("PIP_CONFIG_FILE", "/dev/null"),
            ("UV_CONFIG_FILE", "/dev/null"),
            ("PIP_INDEX_URL", "https://a.example/simple"),
            ("UV_INDEX_URL", "https://b.example/simple"),
            ("PIP_EXTRA_INDEX_URL", "https://c.example/simple https://d.example/simple"),
            ("UV_INDEX", "named=https://e.example/simple?x=y"),
            ("PIP_FIND_LINKS", "/wheels file:///more https://f.example/links"),
            ("PIP_CERT", "/ca.pem"),
        ]);
        assert_eq!(
            urls(&found),
            [
                "https://a.example/simple",
                "https://c.example/simple",
                "https://d.example/simple",
                "https://e.example/simple?x=y"
            ]
        );
        assert_eq!(found.find_links, [PathBuf::from("/wheels"), PathBuf::from("/more")]);
        assert_eq!(found.ca_files, [PathBuf::from("/ca.pem")]);
    }

    #[test]
    fn the_public_index_is_the_default_and_no_index_is_honoured() {
        let quiet = [("PIP_CONFIG_FILE", "/dev/null"), ("UV_CONFIG_FILE", "/dev/null")];
        assert_eq!(urls(&config(&quiet)), [DEFAULT_INDEX]);
        let mut with_no_index = quiet.to_vec();
        with_no_index.push(("PIP_NO_INDEX", "1"));
        assert!(config(&with_no_index).indexes.is_empty());
        let mut broken = quiet.to_vec();
        broken.push(("PIP_INDEX_URL", "not an address"));
        assert!(config(&broken).indexes.is_empty());
    }

    #[test]
    fn files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let pip = folder.path().join("pip.conf");
        std::fs::write(&pip, "[global]\nindex-url = https://pip.example/simple\n").unwrap();
        let uv = folder.path().join("uv.toml");
        std::fs::write(&uv, "[[index]]\nname='x'\nurl='https://uv.example/simple'\n").unwrap();
        let found = config(&[("PIP_CONFIG_FILE", pip.to_str().unwrap()), ("UV_CONFIG_FILE", uv.to_str().unwrap())]);
        assert_eq!(urls(&found), ["https://pip.example/simple", "https://uv.example/simple"]);
    }

    #[test]
    fn pip_files_have_sections_comments_and_continued_lines() {
        let layer = parse_pip_file(
            "# c\n[install]\nindex-url = https://no.example/\n[global]\nindex_url: https://g.example/\nextra-index-url =\n    https://x.example/\n    https://y.example/\n; c\ncert = /c.pem\n[download]\nindex-url = https://d.example/\nno-index = false\n",
        );
        assert_eq!(layer.index.as_deref(), Some("https://d.example/"));
        assert_eq!(layer.extra, ["https://x.example/", "https://y.example/"]);
        assert_eq!((layer.cert.as_deref(), layer.no_index), (Some("/c.pem"), false));
        assert_eq!(parse_pip_file("nonsense\n  [\n=\n"), Layer::default());
    }

    #[test]
    fn uv_files_have_index_tables() {
        let layer = parse_uv_file(
            "extra-index-url = ['https://e.example/']\n[pip]\nindex-url = 'https://p.example/'\n[[index]]\nurl = 'https://d.example/'\ndefault = true\n[[index]]\nname = 'torch'\nurl = 'https://t.example/'\nexplicit = true\n[[index]]\nurl = 'https://o.example/'\n",
        )
        .unwrap();
        assert_eq!(layer.index.as_deref(), Some("https://d.example/"));
        assert_eq!(layer.extra, ["https://o.example/", "https://e.example/"]);
        assert_eq!(parse_uv_file("not toml ["), None);
    }
}
