//! `idiolect unique`: what a validator's gate would make of a batch of replies.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_backend::{Embedder, Embedding};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::{Config, EncoderKind, SharedHistory};
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_uniqueness::report::{Reply, Report, Row, Summary, pairwise_distances};
use idiolect_uniqueness::selector::distance_scale;
use idiolect_uniqueness::{GateHistory, GateMode, GateProfile};

use super::{Usage, history, json_arg, plot, profile, profile_arg};
use crate::heat_map::HeatMap;
use crate::output;
use crate::picture::Picture as _;
use crate::replies::{self, Line};

/// Texts encoded at a time.
const AT_A_TIME: usize = 64;

pub(crate) fn command() -> Command {
    let path = |id: &'static str| Arg::new(id).value_parser(value_parser!(PathBuf));
    let command = Command::new("unique")
        .about("Measure how unlike each other replies are, as a validator's gate does, and by their words")
        .after_help(
            "A file has one reply a line: a JSON object with \"text\" and, if wanted, \"id\" (else its line's number), or a JSON \
             string. All replies of FILE count as answers to one prompt that came in together.\n\
             distance: 1 - |cosine| to the nearest other reply, or the one of the profile's rank. batch, historic: the profile's \
             rewards of that, and of the second nearest of the earlier replies (or of its rank; of a reply that came alone, the nearest). reward: their product. masked: whether it takes everything. The measures of words are \
             with that nearest reply: words that both have of all words (jaccard), ROUGE-L; and runs of 8 words that any other has.\n\
             Examples: idiolect unique replies.jsonl --plot map.svg; idiolect unique - --encoder mpnet --json < replies.jsonl",
        )
        .arg(path("file").value_name("FILE").required(true).help("Replies, one a line; - is standard input"))
        .arg(path("against").long("against").value_name("FILE").help(
            "Earlier replies, oldest first: the validator's history, for the historic reward; the profiles that are built in \
             compare with those after the oldest 500, once there are 502. With fewer the file changes nothing",
        ))
        .arg(
            Arg::new("history")
                .long("history")
                .value_name("FILE|URL")
                .num_args(0..=1)
                .default_missing_value("")
                .conflicts_with("against")
                .value_parser(history_place)
                .help(
                    "Earlier replies out of a miner's history instead: an SQLite file or postgres://USER@HOST/DATABASE; alone, that \
                     of uniqueness.shared_history, else of the data directory",
                ),
        )
        .arg(path("rivals").long("rivals").value_name("FILE").help(
            "Replies of others to the same prompt, which are compared with and not reported on",
        ))
        .arg(profile_arg())
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .value_name("TEXT")
                .help("What was asked: runs of words that it has are not counted as shared ones"),
        )
        .arg(path("plot").long("plot").value_name("FILE").help(
            "Draw the distances of all pairs as a heat map into this .png or .svg file; red is what the gate does not let pass",
        ))
        .arg(json_arg().help("Print one JSON object a reply, one a line"));
    cli::key_args(command, |key| {
        let of_encoder = key.starts_with("uniqueness.encoder") || key == "uniqueness.device";
        of_encoder || key.starts_with("models.") || key == "data_dir"
    })
}

/// Where a history lies; `None` for the miner's own.
fn history_place(text: &str) -> Result<Option<SharedHistory>, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    super::start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        return Err(Usage(
            "uniqueness.encoder is off, expected minilm, mpnet or openai: distances need an encoder".to_owned(),
        )
        .into());
    }
    let plot = plot(matches)?;
    let profile = profile(matches, config)?.gate;
    let file = matches.get_one::<PathBuf>("file").context("name a file")?;
    let read = |name: &str| matches.get_one::<PathBuf>(name).map_or(Ok(Vec::new()), |path| replies::read(path));
    let (texts, rivals, earlier) = (replies::read(file)?, read("rivals")?, read("against")?);
    if texts.is_empty() {
        bail!("there are no replies in {}", replies::name(file));
    }
    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let encoder = Loader { resolver: &resolver, progress: &FetchProgress::default() }.encoder(config).await?;
    let encoder = encoder.context("there is no encoder")?;

    let embeddings = embed(&encoder, &texts).await?;
    let of_rivals = embed(&encoder, &rivals).await?;
    let (history, n_earlier) = match matches.get_one::<Option<SharedHistory>>("history") {
        Some(place) => kept_history(&profile, &encoder, place.as_ref(), config).await?,
        None => {
            let history = encoded(&profile, &encoder, &earlier).await?;
            let n_kept = history.as_ref().map(GateHistory::len);
            (history, n_kept)
        }
    };
    let prompt = matches.get_one::<String>("prompt").map_or("", String::as_str);
    let (own, others) = (batch(&texts, &embeddings), batch(&rivals, &of_rivals));
    let report = Report::to_prompt(&profile, prompt, &own, &others, history.as_ref());
    if let Some(path) = plot {
        draw(
            path,
            &encoder,
            &profile,
            &[&texts[..], &rivals].concat(),
            &[embeddings.clone(), of_rivals.clone()].concat(),
        )?;
    }
    if matches.get_flag("json") {
        return report.rows.iter().try_for_each(|row| Ok(output::say(serde_json::to_string(row)?)?));
    }
    print(&report, &profile)?;
    remarks(&profile, &encoder, texts.len() + rivals.len(), n_earlier)
}

/// Reads the replies of the encoder out of a miner's history.
async fn kept_history(
    profile: &GateProfile,
    encoder: &Arc<dyn Embedder>,
    place: Option<&SharedHistory>,
    config: &Config,
) -> anyhow::Result<(Option<GateHistory>, Option<usize>)> {
    let place = place.cloned().unwrap_or_else(|| history::of(config));
    let store = history::existing(&place).await.context("--history")?;
    let newer = store.since(encoder.name(), 0, profile.history_keep).await.context("--history cannot be read")?;
    let embeddings: Vec<Embedding> = newer.replies.into_iter().map(|reply| reply.embedding).collect();
    if let Some(odd) = embeddings.iter().find(|embedding| embedding.len() != encoder.dimensions()) {
        bail!(
            "--history has embeddings of {} values by {}, expected {}",
            odd.len(),
            encoder.name(),
            encoder.dimensions()
        );
    }
    let mut history = GateHistory::new(profile, encoder.dimensions());
    history.push_batch(&embeddings);
    let n_kept = history.len();
    Ok((Some(history), Some(n_kept)))
}

async fn embed(encoder: &Arc<dyn Embedder>, texts: &[Line]) -> anyhow::Result<Vec<Embedding>> {
    let mut embeddings = Vec::with_capacity(texts.len());
    for some in texts.chunks(AT_A_TIME) {
        let some: Vec<String> = some.iter().map(|line| line.text.clone()).collect();
        embeddings.extend(encoder.embed(&some).await.context("the replies cannot be encoded")?);
    }
    Ok(embeddings)
}

async fn encoded(
    profile: &GateProfile,
    encoder: &Arc<dyn Embedder>,
    earlier: &[Line],
) -> anyhow::Result<Option<GateHistory>> {
    // What is forgotten at once need not be encoded.
    let kept = &earlier[earlier.len().saturating_sub(profile.history_keep)..];
    if kept.is_empty() {
        return Ok(None);
    }
    let mut history = GateHistory::new(profile, encoder.dimensions());
    history.push_batch(&embed(encoder, kept).await?);
    Ok(Some(history))
}

fn batch<'a>(texts: &'a [Line], embeddings: &'a [Embedding]) -> Vec<Reply<'a>> {
    let both = texts.iter().zip(embeddings);
    both.map(|(line, embedding)| Reply { id: &line.id, text: &line.text, embedding }).collect()
}

fn draw(
    path: &Path,
    encoder: &Arc<dyn Embedder>,
    profile: &GateProfile,
    texts: &[Line],
    embeddings: &[Embedding],
) -> anyhow::Result<()> {
    let ids: Vec<String> = texts.iter().map(|line| line.id.clone()).collect();
    let bound = profile.batch.distance_at(profile.pass_above);
    let title = format!("Distances by {}; red below {bound:.4}", encoder.name());
    HeatMap { title: &title, ids: &ids, distances: &pairwise_distances(embeddings), bound }.save(path)
}

fn print(report: &Report, profile: &GateProfile) -> anyhow::Result<()> {
    let head = [
        "id",
        "nearest",
        "distance",
        "batch",
        "historic",
        "reward",
        "masked",
        "jaccard",
        "rouge-l",
        "bleu",
        "shared 8-grams",
    ];
    let rows: Vec<Vec<String>> = report.rows.iter().map(cells).collect();
    output::columns(&head, &rows)?;
    let Summary { n, n_masked, .. } = report.summary;
    let masked = match profile.mode {
        GateMode::Mask => format!("{n_masked} of {n} masked"),
        GateMode::Product => format!("{n} replies"),
    };
    let of = |name: &str, value: Option<f64>| format!("{name} {}", number(value));
    let summary = [
        masked,
        of("mean batch reward", report.summary.mean_batch_reward),
        of("Vendi", report.summary.vendi),
        of("self-BLEU", report.summary.self_bleu),
        of("distinct-2", report.summary.distinct[1]),
        of("compression", report.summary.compression_ratio),
        of("shared openings", report.summary.shared_openings),
        of("sharing 8-grams", report.summary.sharing_8grams),
    ];
    Ok(output::say(format!("\n{}: {}", profile.name, summary.join(", ")))?)
}

fn cells(row: &Row) -> Vec<String> {
    let lexical = &row.lexical;
    vec![
        row.id.clone(),
        row.nearest.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{:.4}", row.distance),
        format!("{:.4}", row.batch_reward),
        row.historic_reward.map_or_else(|| "-".to_owned(), |reward| format!("{reward:.4}")),
        format!("{:.4}", row.reward),
        if row.masked { "yes" } else { "no" }.to_owned(),
        number(lexical.jaccard_words),
        number(lexical.rouge_l),
        number(lexical.bleu),
        number(lexical.shared_8grams),
    ]
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// Says what the figures do not tell by themselves.
fn remarks(
    profile: &GateProfile,
    encoder: &Arc<dyn Embedder>,
    n: usize,
    n_earlier: Option<usize>,
) -> anyhow::Result<()> {
    if n == 1 {
        output::say("one reply alone counts as a repeat of itself, as validators have it; give others with --rivals")?;
    } else if n <= profile.batch_rank {
        output::say(format!(
            "{n} replies count as repeats: {} looks at the other one at rank {} by distance; give others with --rivals",
            profile.name, profile.batch_rank
        ))?;
    }
    let needed = profile.history_skip.saturating_add(profile.history_rank);
    match n_earlier {
        Some(n_earlier) if n_earlier < needed => output::say(format!(
            "no historic reward, the history changes nothing: {n_earlier} earlier replies are known (of equal ones in a row the first), \
             and {} compares from {needed} on",
            profile.name
        ))?,
        Some(_) if n < profile.history_rank => output::say(format!(
            "the historic reward is by the earlier reply at rank {n} instead of {}: the rank is never more than there are replies in the batch",
            profile.history_rank
        ))?,
        _ => {}
    }
    if distance_scale(encoder.name()) < 1.0 {
        output::say(format!(
            "{} sees larger distances than the validators' encoder: more replies would be masked than are here; --encoder mpnet is theirs",
            encoder.name()
        ))?;
    }
    Ok(())
}
