//! The miner asks itself: one signed prompt over each transport, through real sockets.

use std::time::Duration;

use idiolect_pipeline::{PipelineError, Provenance};
use idiolect_protocol::dendrite::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, Via};
use idiolect_protocol::{Message, Prompt, PromptError, Role, Transport};

use crate::app::Miner;
use crate::config::TransportsSection;

/// What the miner asks itself.
const QUESTION: &str = "In two or three sentences: why is the sky blue?";
/// How long it waits, as validators' clients do.
const TIMEOUT: Duration = Duration::from_secs(12);

/// What came of one question.
#[derive(Debug)]
pub struct SelfAnswer {
    /// The transport.
    pub via: Via,
    /// The reply as a validator would see it.
    pub reply: Result<DendriteReply, DendriteError>,
    /// How it came to be.
    pub provenance: Option<Provenance>,
}

/// Asks over gRPC and over HTTP, as far as they are served.
///
/// # Errors
/// Only if the question itself were no prompt.
pub async fn ask_self(miner: &Miner, transports: &TransportsSection) -> Result<Vec<SelfAnswer>, PromptError> {
    let dendrite = Dendrite::new(miner.keypair().clone());
    let target = Target::from((miner.own_address(), miner.hotkey()));
    let prompt = Prompt::new(vec![Message::new(Role::User, QUESTION)])?;
    let options = QueryOptions { timeout: TIMEOUT, ..QueryOptions::default() };
    let mut answers = Vec::new();
    for (via, transport, is_on) in
        [(Via::Grpc, Transport::Grpc, transports.grpc), (Via::Http, Transport::Http, transports.http)]
    {
        if !is_on {
            continue;
        }
        let reply = dendrite.query(&target, via, &prompt, &options).await;
        let provenance = match &reply {
            Ok(_) => provenance(miner, transport).await,
            Err(_) => None,
        };
        answers.push(SelfAnswer { via, reply, provenance });
    }
    Ok(answers)
}

/// Finds the record of our own last question over a transport.
async fn provenance(miner: &Miner, transport: Transport) -> Option<Provenance> {
    miner.pipeline().flush().await;
    let own = miner.hotkey().to_string();
    match miner.pipeline().explain("last").await {
        Ok(found) if found.caller.as_deref() == Some(&own) && found.transport == transport.as_str() => Some(found),
        // Somebody else was quicker, or records are full: the reply itself is what counts.
        Ok(_) | Err(PipelineError::NotFound(_)) => None,
        Err(error) => {
            tracing::warn!(%error, "the record of the reply cannot be read");
            None
        }
    }
}

impl std::fmt::Display for SelfAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.via {
            Via::Grpc => "gRPC",
            Via::Http => "HTTP",
            other => other.as_str(),
        };
        match &self.reply {
            Ok(reply) => {
                let ms = reply.elapsed.as_millis();
                writeln!(f, "asked myself over {name}: {} {} after {ms} ms", reply.status_code, reply.status_message)?;
                writeln!(f, "  {}", reply.text.trim().replace('\n', "\n  "))?;
            }
            Err(error) => {
                write!(f, "asked myself over {name}: no reply: {error}")?;
                for cause in std::iter::successors(std::error::Error::source(error), |cause| cause.source()) {
                    write!(f, ": {cause}")?;
                }
                writeln!(f)?;
            }
        }
        if let Some(provenance) = &self.provenance {
            writeln!(f, "how it came to be:")?;
            for line in provenance.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
