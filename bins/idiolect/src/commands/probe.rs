//! `idiolect probe`: asks a miner over the network, as a validator would.

use std::time::Duration;

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_miner::{cli, identity};
use idiolect_protocol::dendrite::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, Via};
use idiolect_protocol::openai::AvailabilityReply;
use idiolect_protocol::{Hotkey, Keypair};
use serde_json::{Value, json};

use super::{Usage, json_arg, prompt_args, prompt_of};
use crate::output;

pub(crate) fn command() -> Command {
    let command = Command::new("probe")
        .about("Ask a miner over the network, as a validator would, and show what comes back")
        .after_help(
            "Example: idiolect probe 127.0.0.1:8091 --hotkey 5F… --via http --message \"Why is the sky blue?\"\n\
             Signs with --wallet.name/--wallet.hotkey or --hotkey-uri where one is given, else with the key of a miner on this machine, \
             else with a new key. The miner answers only keys that its policy lets in.",
        )
        .arg(Arg::new("address").required(true).value_name("HOST:PORT").help("Where the miner listens"))
        .arg(
            Arg::new("hotkey")
                .long("hotkey")
                .required(true)
                .value_name("SS58")
                .value_parser(value_parser!(Hotkey))
                .help("The miner's hotkey, for which the request is signed"),
        )
        .arg(
            Arg::new("via")
                .long("via")
                .value_name("WAY")
                .default_value("http")
                .value_parser(value_parser!(Via))
                .help("grpc (bittensor 5), http or stream (bittensor 7.2 to 10), epistula, btauth (bittensor 11)"),
        )
        .arg(
            Arg::new("message")
                .long("message")
                .short('m')
                .value_name("TEXT")
                .default_value("In two or three sentences: why is the sky blue?")
                .help("What to ask; - reads it from standard input"),
        );
    let command = prompt_args(command).arg(
        Arg::new("timeout")
            .long("timeout")
            .value_name("DURATION")
            .default_value("12s")
            .allow_hyphen_values(true)
            .value_parser(super::timeout)
            .help("How long to wait, such as 5, 0.5 or 500ms; the miner is told"),
    );
    let command = synapse_args(command).arg(json_arg());
    cli::key_args(command, |key| key.starts_with("wallet.") || key == "data_dir")
}

/// What some ways of asking say beside the prompt.
fn synapse_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("synapse")
                .long("synapse")
                .value_name("NAME")
                .help("HTTP synapse, Synapse (a ping) and AvailabilitySynapse included [default: Prompting, StreamPrompting for stream]"),
        )
        .arg(Arg::new("task").long("task").value_name("NAME").help("epistula, AvailabilitySynapse: the task's name, such as InferenceTask"))
        .arg(Arg::new("ask-model").long("model").value_name("NAME").help("epistula, btauth, AvailabilitySynapse: the model asked for"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .allow_negative_numbers(true)
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("epistula, btauth: the seed to honour"),
        )
        .arg(
            Arg::new("logprobs")
                .long("logprobs")
                .allow_negative_numbers(true)
                .value_name("N")
                .value_parser(value_parser!(u8).range(0..=20))
                .help("epistula, btauth: log-probabilities with so many alternatives"),
        )
}

/// The synapses that ask for no reply.
const PING: &str = "Synapse";
const AVAILABILITY: &str = "AvailabilitySynapse";

/// Refuses arguments that the chosen way has no use for: whoever gives one expects it to count.
fn check_arguments(matches: &ArgMatches, via: Via) -> Result<(), Usage> {
    let synapse = matches.get_one::<String>("synapse").map(String::as_str);
    let is_http = matches!(via, Via::Http | Via::Stream);
    let is_chat = matches!(via, Via::Epistula | Via::Btauth);
    let (is_ping, is_availability) = (synapse == Some(PING), synapse == Some(AVAILABILITY));
    if (is_ping || is_availability) && via == Via::Stream {
        let synapse = synapse.unwrap_or_default();
        return Err(Usage(format!("--synapse {synapse} is not for --via stream, expected --via http")));
    }
    let asks = !(is_http && (is_ping || is_availability));
    let of_http = is_http && is_availability;
    let arguments = [
        ("synapse", "synapse", is_http, "--via http or stream"),
        ("task", "task", via == Via::Epistula || of_http, "--via epistula, or http with --synapse AvailabilitySynapse"),
        (
            "ask-model",
            "model",
            is_chat || of_http,
            "--via epistula or btauth, or http with --synapse AvailabilitySynapse",
        ),
        ("seed", "seed", is_chat, "--via epistula or btauth"),
        ("logprobs", "logprobs", is_chat, "--via epistula or btauth"),
        ("message", "message", asks, "synapses that ask for a reply"),
        ("system", "system", asks, "synapses that ask for a reply"),
    ];
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    for (id, flag, counts, ways) in arguments {
        if is_given(id) && !counts {
            let with = synapse.filter(|_| is_http).map_or(String::new(), |name| format!(" --synapse {name}"));
            return Err(Usage(format!("--{flag} counts for nothing with --via {via}{with}; it is for {ways}")));
        }
    }
    Ok(())
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    if let Some(via) = matches.get_one::<Via>("via") {
        check_arguments(matches, *via)?;
    }
    let loaded = super::load(matches)?;
    super::start_logging(&loaded)?;
    let (keypair, signer) = signing_key(&loaded.config)?;
    let (Some(address), Some(hotkey), Some(via)) =
        (matches.get_one::<String>("address"), matches.get_one::<Hotkey>("hotkey"), matches.get_one::<Via>("via"))
    else {
        return Ok(());
    };
    let target = Target::new(address, *hotkey)?;
    let prompt = prompt_of(matches)?;
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let options = QueryOptions {
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(QueryOptions::default().timeout),
        synapse: text("synapse"),
        model: text("ask-model"),
        seed: matches.get_one::<u64>("seed").copied(),
        task: text("task"),
        logprobs: matches.get_one::<u8>("logprobs").copied(),
        ..QueryOptions::default()
    };
    let as_json = matches.get_flag("json");
    let dendrite = Dendrite::new(keypair);
    let answer = match (*via, options.synapse.as_deref()) {
        (Via::Http, Some(PING)) => dendrite.ping(&target, options.timeout).await.map(Answer::Ping),
        (Via::Http, Some(AVAILABILITY)) => {
            let (tasks, models) = (Vec::from_iter(text("task")), Vec::from_iter(text("ask-model")));
            dendrite.availability(&target, *via, &tasks, &models, options.timeout).await.map(Answer::Availability)
        }
        _ => dendrite.query(&target, *via, &prompt, &options).await.map(|reply| Answer::Reply(Box::new(reply))),
    };
    match answer {
        Ok(Answer::Reply(reply)) if as_json => output::json(&described(*via, &dendrite, &reply)),
        Ok(Answer::Reply(reply)) => print(*via, &reply, &signer, &dendrite),
        Ok(Answer::Ping(took)) if as_json => output::json(&json!({
            "via": via.as_str(), "signed_by": dendrite.hotkey(), "ok": true, "status": 200, "elapsed_ms": ms(took),
        })),
        Ok(Answer::Ping(took)) => Ok(output::say(format!("it is there, and answered after {:.1} ms", ms(took)))?),
        Ok(Answer::Availability(served)) if as_json => output::json(&json!({
            "via": via.as_str(), "signed_by": dendrite.hotkey(), "ok": true, "status": 200,
            "tasks": served.task_availabilities, "models": served.llm_model_availabilities,
        })),
        Ok(Answer::Availability(served)) => {
            let kinds = [("task", served.task_availabilities), ("model", served.llm_model_availabilities)];
            let mut names = kinds.into_iter().flat_map(|(kind, names)| names.into_iter().map(move |of| (kind, of)));
            let Some(first) = names.next() else {
                return Ok(output::say("it answered; --task and --model name what to ask about")?);
            };
            for (kind, (name, is_served)) in std::iter::once(first).chain(names) {
                output::say(format!("{kind} {name}: {}", if is_served { "served" } else { "not served" }))?;
            }
            Ok(())
        }
        Err(error) => {
            if as_json {
                output::json(&json!({
                    "via": via.as_str(), "signed_by": dendrite.hotkey(), "ok": false, "status": error.status_code().as_u16(), "error": error.to_string(),
                }))?;
            }
            let hint = hint(&error);
            Err(error).with_context(|| format!("{target} did not answer over {via}{hint}", target = target.address()))
        }
    }
}

/// What a miner can be asked.
enum Answer {
    Reply(Box<DendriteReply>),
    /// How long it took.
    Ping(Duration),
    Availability(AvailabilityReply),
}

/// Finds the key to sign with, and says where it comes from.
pub(super) fn signing_key(config: &idiolect_miner::config::Config) -> anyhow::Result<(Keypair, String)> {
    let wallet = &config.wallet;
    let is_named = wallet.hotkey_uri.is_some() || wallet.name.is_some() || wallet.hotkey.is_some();
    if !is_named && !identity::hotkey_file(config)?.exists() {
        return Ok((Keypair::generate(), "a new key".to_owned()));
    }
    let found = identity::find(config)?;
    let place = found.file.map_or_else(|| "the given secret".to_owned(), |file| file.display().to_string());
    Ok((found.keypair, place))
}

fn hint(error: &DendriteError) -> &'static str {
    match (error, error.status_code().as_u16()) {
        (DendriteError::Refused { .. }, 401) => " (is --hotkey the miner's own, and is this machine's clock right?)",
        (DendriteError::Refused { .. }, 403) => {
            " (its policy does not let this key in: see --blacklist.allow on the miner, --wallet.name here)"
        }
        (DendriteError::Connect { .. }, _) => " (is it running, and is the port open?)",
        _ => "",
    }
}

fn described(via: Via, dendrite: &Dendrite, reply: &DendriteReply) -> Value {
    json!({
        "via": via.as_str(), "signed_by": dendrite.hotkey(), "ok": true, "status": reply.status_code, "message": reply.status_message,
        "elapsed_ms": ms(reply.elapsed), "first_byte_ms": ms(reply.first_byte), "pieces": reply.n_pieces, "model": reply.model,
        "finish_reason": reply.finish_reason, "completion": reply.text, "logprobs": reply.logprobs,
    })
}

fn print(via: Via, reply: &DendriteReply, signer: &str, dendrite: &Dendrite) -> anyhow::Result<()> {
    output::say(format!("via       {via}, signed by {} ({signer})", dendrite.hotkey()))?;
    output::say(format!("status    {} {}", reply.status_code, reply.status_message))?;
    let pieces = if reply.n_pieces > 1 { format!(", {} pieces", reply.n_pieces) } else { String::new() };
    output::say(format!(
        "time      {:.0} ms, first byte after {:.0} ms{pieces}",
        ms(reply.elapsed),
        ms(reply.first_byte)
    ))?;
    if let Some(model) = &reply.model {
        output::say(format!("model     {model}"))?;
    }
    if let Some(reason) = &reply.finish_reason {
        output::say(format!("ends by   {reason}"))?;
    }
    if !reply.logprobs.is_empty() {
        let sum: f64 = reply.logprobs.iter().map(|t| f64::from(t.logprob)).sum();
        let mean = sum / f64::from(u32::try_from(reply.logprobs.len()).unwrap_or(u32::MAX));
        output::say(format!("logprobs  {} tokens, mean {mean:.2}", reply.logprobs.len()))?;
    }
    Ok(output::say(format!("\n{}", reply.text.trim()))?)
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
