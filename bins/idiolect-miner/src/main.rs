//! The miner: arguments, configuration, logging, [`idiolect_miner::run`], exit code.

use std::io::Write as _;
use std::process::ExitCode;

use idiolect_miner::cli::{self, Invocation};
use idiolect_miner::config::{ConfigError, load, unknown_variables};
use idiolect_miner::{run, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a command line or configuration that cannot be used.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let matches = match cli::parse(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match start(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "error: {}", cli::one_line(&error));
            if error.is::<ConfigError>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn start(matches: &clap::ArgMatches) -> anyhow::Result<()> {
    let invocation = Invocation::new(matches, cli::process_env())?;
    let config = load(&invocation.sources)?.config;
    telemetry::start_logging(&config.log)?;
    for variable in unknown_variables(&invocation.sources.env) {
        tracing::warn!(variable, "this environment variable sets nothing; see docs/configuration.md");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(run(&config, &invocation));
    // A fetch or an engine that is still at work must not hold up the end.
    runtime.shutdown_background();
    done
}
