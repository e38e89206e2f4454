//! The reference of settings as Markdown, for docs/configuration.md.

use std::fmt::Write as _;

use super::key::{Key, plain};
use super::{BACKEND_KEYS, BackendConfig, Config, PRESETS, PresetKind, sections};

/// Writes the tables of all settings and presets.
#[must_use]
pub fn reference() -> String {
    let mut out = String::new();
    let defaults = Config::default();
    for (name, about, keys) in sections() {
        let title = if name.is_empty() { "Top level".to_owned() } else { format!("`[{name}]`") };
        let _ = write!(out, "### {title}\n\n{about}\n\n");
        out.push_str("| Key | Type | Default | Unit | Flag | Environment | Meaning |\n| --- | --- | --- | --- | --- | --- | --- |\n");
        for key in keys {
            let default = if key.name == "data_dir" {
                "the user's data directory".to_owned()
            } else {
                code(&default_text(key, &defaults))
            };
            let flags = key.all_flags().map(|f| format!("`--{f}`")).collect::<Vec<_>>().join(" ");
            let env = key.all_env().map(|e| format!("`{e}`")).collect::<Vec<_>>().join(" ");
            row(&mut out, key, &default, Some((&flags, &env)));
        }
        out.push('\n');
    }
    out.push_str("### `[[backends]]`\n\nOne entry for each backend, in the file only.\n\n");
    out.push_str("| Key | Type | Default | Unit | Meaning |\n| --- | --- | --- | --- | --- |\n");
    let defaults = BackendConfig::default();
    for key in BACKEND_KEYS {
        let default = match key.name {
            "kind" => "needed".to_owned(),
            "name" => "its kind".to_owned(),
            "max_concurrent" => "4 candle, 32 openai, 1024 echo and recorded".to_owned(),
            _ => code(&plain(&key.show(&defaults))),
        };
        row(&mut out, key, &default, None);
    }
    out.push_str("\n### Presets\n\n");
    for preset in PRESETS {
        let kind = match preset.kind {
            PresetKind::Runs => "",
            PresetKind::Historic => " Historic: refused together with the main network.",
            PresetKind::Card => " Information only: there is nothing to run.",
        };
        let values = preset.values.iter().map(|(k, v)| format!("`{k} = {v}`")).collect::<Vec<_>>().join(", ");
        let values = if values.is_empty() { String::new() } else { format!(" Sets {values}.") };
        let _ = writeln!(out, "- **{}**: {}. {}{kind}{values}", preset.name, preset.summary, preset.about);
    }
    out
}

fn default_text(key: &Key<Config>, defaults: &Config) -> String {
    plain(&key.show(defaults))
}

fn row<C>(out: &mut String, key: &Key<C>, default: &str, ways: Option<(&str, &str)>) {
    let own = key.name;
    let kind = if key.expected.is_empty() {
        key.type_name().to_owned()
    } else {
        format!("{}, {}", key.type_name(), key.expected)
    };
    let ways = ways.map_or(String::new(), |(flags, env)| format!(" {flags} | {env} |"));
    let doc = key.doc.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let _ = writeln!(out, "| `{own}` | {kind} | {default} | {} |{ways} {doc} |", key.unit);
}

fn code(text: &str) -> String {
    if text.is_empty() { "(empty)".to_owned() } else { format!("`{text}`") }
}

/// Writes a configuration file with every setting in it, commented out.
#[must_use]
pub fn template() -> String {
    let mut out = String::from(
        "# Settings of the Idiolect miner. Take away the # before a setting to change it; what stands here is the default.\n\
         # A flag or an environment variable beats this file. `idiolect config show --origin` shows which value counts.\n",
    );
    let defaults = Config::default();
    for (name, about, keys) in sections() {
        let _ = write!(out, "\n# {about}\n");
        if !name.is_empty() {
            let _ = writeln!(out, "[{name}]");
        }
        for key in keys {
            let short = key.name.rsplit('.').next().unwrap_or(key.name);
            entry(&mut out, short, key, &defaults);
        }
    }
    out.push_str(
        "\n# One entry for each backend. Without any, the default model is used with candle.\n# [[backends]]\n",
    );
    let defaults = BackendConfig::default();
    for key in BACKEND_KEYS {
        entry(&mut out, key.name, key, &defaults);
    }
    out
}

fn entry<C>(out: &mut String, short: &str, key: &Key<C>, defaults: &C) {
    let doc = key.doc.split_whitespace().collect::<Vec<_>>().join(" ");
    let unit = if key.unit.is_empty() { String::new() } else { format!(" ({})", key.unit) };
    let _ = writeln!(out, "# {doc}{unit}");
    let value = match key.show(defaults) {
        serde_json::Value::Null => "\"none\"".to_owned(),
        serde_json::Value::String(text) if key.name == "data_dir" && text.is_empty() => "\"…\"".to_owned(),
        value => value.to_string(),
    };
    let _ = writeln!(out, "# {short} = {value}");
}
