//! The chance to be masked, predicted from a few revealed rivals, beside what the whole population does, and its fit.
//!
//!     cargo bench -p idiolect-arena --bench calibration -- REPLIES.jsonl [--fit] [--folds] [--plain] [--siblings]
//!         [--pass-above P] [--embeddings FOLDER]
//!
//! REPLIES.jsonl has one reply a line: `{"p": PROMPT, "m": MODEL, "t": TEXT}`, each model once a prompt (see [`Replies`]). The truth is that of
//! all-mpnet-base-v2 with all replies to the prompt revealed. Without options the figures are those of the coefficients in
//! `chance.rs`, for prompts that had no part in their fit. All draws are the same each time.
//!
//! - `--fit` fits them anew to the file's prompts and prints them, for both encoders.
//! - `--folds` shows how such fits do: each of five parts of the prompts predicted by a fit to the other four.
//! - `--plain` shows what one's own plain answer says of the rivals. The plain answer to X_concise is X.
//! - `--siblings` shows what our own other candidates say of the rivals.
//! - `--pass-above` takes another bound of the reward than that of the profiles, which is 0.2.
//! - `--embeddings` keeps embeddings in a folder for the next run.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod cases;
mod embeddings;
mod fit;
mod plain;
mod siblings;
mod tables;

use std::path::PathBuf;

use idiolect_arena::Replies;
use idiolect_uniqueness::GateProfile;
use idiolect_uniqueness::chance::Calibration;

use cases::Setting;

const USAGE: &str = "usage: cargo bench -p idiolect-arena --bench calibration -- REPLIES.jsonl [--fit] [--folds] [--plain] [--siblings] [--pass-above P] [--embeddings FOLDER]";

type Failure = Box<dyn std::error::Error>;

#[derive(Default)]
struct Options {
    file: Option<PathBuf>,
    fits: bool,
    folds: bool,
    plain: bool,
    siblings: bool,
    pass_above: Option<f32>,
    embeddings: Option<PathBuf>,
}

impl Options {
    fn read(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--fit" => options.fits = true,
                "--folds" => options.folds = true,
                "--plain" => options.plain = true,
                "--siblings" => options.siblings = true,
                "--pass-above" => {
                    let text = args.next().ok_or("--pass-above needs a number")?;
                    options.pass_above = Some(text.parse().map_err(|error| format!("--pass-above {text}: {error}"))?);
                }
                "--embeddings" => {
                    options.embeddings = Some(args.next().ok_or("--embeddings needs a folder")?.into());
                }
                _ if arg.starts_with('-') || options.file.is_some() => return Err(format!("unexpected {arg}")),
                _ => options.file = Some(arg.into()),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::read(std::env::args().skip(1))?;
    let Some(file) = &options.file else {
        println!("{USAGE}");
        return Ok(());
    };
    let replies = Replies::open(file)?;
    let of_prompt = |indices: Vec<usize>| {
        let replies = indices.into_iter().map(|index| &replies.all()[index]);
        replies.map(|reply| (reply.model.clone(), reply.text.clone())).collect()
    };
    let prompts: Vec<Vec<(String, String)>> = replies.by_prompt().into_values().map(of_prompt).collect();
    println!("{} prompts, {} replies", prompts.len(), prompts.iter().map(Vec::len).sum::<usize>());

    let profile = GateProfile::TEXT_PROMPTING_2_1;
    let bound = profile.batch.distance_at(options.pass_above.unwrap_or(profile.pass_above));
    let folder = options.embeddings.as_deref();
    let truth = embeddings::distances("mpnet", 1.0, &replies, folder)?;
    let scale = idiolect_uniqueness::selector::distance_scale("minilm");
    let scaled = embeddings::distances("minilm", scale, &replies, folder)?;
    let encoders = [
        ("all-mpnet-base-v2", Calibration::MPNET, Setting { distances: &truth, truth: &truth, bound }),
        ("all-MiniLM-L6-v2", Calibration::MINILM, Setting { distances: &scaled, truth: &truth, bound }),
    ];
    agreement(&truth, &scaled, bound);
    for (encoder, recorded, setting) in encoders {
        println!("\n# {encoder}");
        if options.plain {
            plain::report(&recorded, &setting, &prompts);
            continue;
        }
        if options.siblings {
            siblings::report(&recorded, &setting, &prompts);
            continue;
        }
        let cases = setting.cases();
        if !options.fits && !options.folds {
            tables::print(&cases, |case| case.chance(&recorded, bound));
            continue;
        }
        let folds = fit::Folds::new(&cases, &recorded, bound);
        if options.folds {
            tables::print(&cases, |case| folds.chance(case, bound));
        }
        if options.fits {
            let (seen, unseen) = fit::coefficients(cases.iter(), &recorded, bound);
            println!("\nseen: {seen:.5?}, spread: {:.2}", folds.spread());
            println!("unseen: {unseen:.5?}, unseen_spread: {:.2}", folds.unseen_spread());
            println!("unseen_bound: {:.5}", fit::of_bound(&setting));
        }
    }
    Ok(())
}

/// Says how often an encoder masks the same replies as the validators' own.
fn agreement(truth: &[Vec<Vec<f32>>], scaled: &[Vec<Vec<f32>>], bound: f32) {
    let masked = |distances: &[Vec<Vec<f32>>]| -> Vec<bool> {
        let rows = distances.iter().flat_map(|rows| rows.iter().enumerate());
        let nearest = |(i, row): (usize, &Vec<f32>)| {
            let others = row.iter().enumerate().filter(|&(j, _)| j != i);
            others.map(|(_, d)| *d).min_by(f32::total_cmp)
        };
        rows.map(|row| nearest(row).is_none_or(|d| d <= bound)).collect()
    };
    let (truth, scaled) = (masked(truth), masked(scaled));
    let n_same = truth.iter().zip(&scaled).filter(|(a, b)| a == b).count();
    let share = |n: usize| n as f64 / truth.len().max(1) as f64;
    println!(
        "masked: {:.3}; MiniLM says the same of {:.3}",
        share(truth.iter().filter(|m| **m).count()),
        share(n_same)
    );
}
