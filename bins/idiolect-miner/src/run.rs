//! The life of the process: start, ask itself, serve, stop.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::bail;

use crate::app::Miner;
use crate::cli::Invocation;
use crate::config::{Allowed, Config, Network};
use crate::progress::FetchProgress;
use crate::selfquery::ask_self;
use crate::{ready, signals};

/// Runs a miner until it is asked to stop, or through its self-query with `--once`.
///
/// # Errors
/// What went wrong, and what to do about it.
pub async fn run(config: &Config, invocation: &Invocation) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    // In a task of its own: a disk that does not answer must not keep anybody from stopping the miner.
    let mut starting = tokio::spawn({
        let (config, env, ready_file) = (config.clone(), invocation.sources.env.clone(), invocation.ready_file.clone());
        async move { start(&config, &env, ready_file.as_deref()).await }
    });
    let started = tokio::select! {
        started = &mut starting => started,
        stopped = &mut stop => {
            starting.abort();
            return Ok(stopped?);
        }
    };
    let mut miner = started??;
    introduce(config, &miner)?;
    let checked = tokio::select! {
        checked = check(config, &miner) => checked,
        stopped = &mut stop => {
            stopped?;
            return miner.stop().await;
        }
    };
    if invocation.once {
        miner.stop().await?;
        return checked;
    }
    if let Err(error) = checked {
        tracing::error!("{error:#}");
    }
    announce(config, &miner)?;
    let ended = tokio::select! {
        ended = miner.ended() => ended,
        stopped = &mut stop => stopped.map_err(Into::into),
    };
    let stopped = miner.stop().await;
    ended.and(stopped)
}

async fn start(config: &Config, env: &BTreeMap<String, String>, ready_file: Option<&Path>) -> anyhow::Result<Miner> {
    let miner = Miner::start(config, env, &FetchProgress::default()).await?;
    if let Some(path) = ready_file {
        ready::write(path, miner.address(), &miner.hotkey(), miner.models())?;
    }
    Ok(miner)
}

/// Asks itself and prints what came of it.
async fn check(config: &Config, miner: &Miner) -> anyhow::Result<()> {
    let answers = ask_self(miner, &config.transports).await?;
    for answer in &answers {
        say(answer)?;
    }
    let n_failed = answers.iter().filter(|answer| answer.reply.is_err()).count();
    if n_failed > 0 {
        bail!("the self-query failed over {n_failed} of {} transports: see above", answers.len());
    }
    Ok(())
}

fn introduce(config: &Config, miner: &Miner) -> io::Result<()> {
    let identity = miner.identity();
    let origin = match (&identity.file, identity.is_new) {
        (Some(file), true) => format!("made now, kept in {}", file.display()),
        (Some(file), false) => file.display().to_string(),
        (None, _) => "given as a secret".to_owned(),
    };
    say(format!("hotkey   {} ({origin})", miner.hotkey()))?;
    let backends =
        config.backends.iter().zip(miner.models()).map(|(backend, model)| format!("{} ({model})", backend.name));
    let backends = backends.collect::<Vec<_>>().join(", ");
    say(format!("backends {backends}; encoder {}", config.uniqueness.encoder.as_str()))?;
    say(format!("network  {}", network(config)))?;
    say("")
}

fn network(config: &Config) -> String {
    let Network::File(path) = &config.network else {
        let callers = match config.policy.allow.as_slice() {
            [] => "only this miner itself may ask (let others in with --blacklist.allow HOTKEY, or any)".to_owned(),
            list if list.contains(&Allowed::Any) => "everybody who proves a key may ask".to_owned(),
            list => format!("{} hotkeys may ask", list.len()),
        };
        return format!("none: loopback only, registered nowhere, nobody on a network can find this miner; {callers}");
    };
    format!("metagraph snapshot {}", path.display())
}

fn announce(config: &Config, miner: &Miner) -> io::Result<()> {
    say(format!("serving  {} (gRPC and HTTP); stop with Ctrl-C", miner.address()))?;
    let (ip, port) = (config.axon.external_ip, config.axon.external_port);
    if ip.is_some() || port.is_some() {
        let outside = SocketAddr::new(ip.unwrap_or(config.axon.ip), port.unwrap_or_else(|| miner.address().port()));
        say(format!("outside  {outside}, as configured: whoever forwards to this machine must know"))?;
    }
    if let Some(address) = miner.metrics_address() {
        say(format!("metrics  http://{address}/metrics and http://{address}/healthz"))?;
    }
    Ok(())
}

/// Writes to standard output. A reader that went away is no reason to stop serving.
fn say(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
