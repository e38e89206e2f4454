//! `POST /<Synapse>`: bittensor 6 to 10, with the synapses of other subnets where they are added.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use ::http::{Method, Request, Response};
use async_trait::async_trait;
use bytes::Bytes;
use hyper::body::Incoming;
use idiolect_protocol::http_synapse::{
    SynapseBody, SynapseKind, SynapseReplier, SynapseSpec, Synapses, read_head, refusal_message, stream_pieces,
};
use idiolect_protocol::openai::AvailabilityReply;
use idiolect_protocol::{AuthError, Caller, Category, Keypair, Prompt, PromptError};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::admission::{Admission, Deadline, InFlight, Refusal};
use crate::body::{ReplyBody, RequestBody};
use crate::connection::Answered;
use crate::error::AxonError;
use crate::handler::{Call, Dictated, HandlerError};
use crate::http::{check_encoding, method_not_allowed, read, refuse, refused, wrong_method};
use crate::queue::Priority;

/// A verified, admitted call of a synapse that was added with [`Axon::with_synapse`](crate::Axon::with_synapse).
#[derive(Clone, Debug)]
pub struct SynapseCall {
    /// Who asks; proved.
    pub caller: Caller,
    /// What is asked; its signed fields are those that were signed.
    pub body: SynapseBody,
    /// When the answer must leave.
    pub deadline: Instant,
}

impl SynapseCall {
    /// Reads a field of the synapse.
    ///
    /// # Errors
    /// [`Category::Malformed`] with the field's name, where it is missing or of another type.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T, HandlerError> {
        let malformed = |what| HandlerError::new(Category::Malformed, format!("field {name:?} {what}"));
        let json = self.body.json(name).ok_or_else(|| malformed("is missing"))?;
        serde_json::from_str(json).map_err(|_| malformed("has the wrong type"))
    }
}

/// What goes back.
#[derive(Clone, Debug, PartialEq)]
pub enum SynapseAnswer {
    /// Fields, in place of the request's own of the same name. The other fields of the request go back unchanged.
    Fields(Map<String, Value>),
    /// Bare text, streamed in pieces.
    Text(String),
}

/// Answers a synapse of another subnet. The contract is that of [`Handler`](crate::Handler).
#[async_trait]
pub trait SynapseHandler: fmt::Debug + Send + Sync + 'static {
    /// Answers a call.
    async fn call(&self, call: SynapseCall) -> Result<SynapseAnswer, HandlerError>;
}

/// The synapses that are served.
pub(crate) struct SynapseFront {
    admission: Arc<Admission>,
    synapses: Synapses,
    handlers: HashMap<String, Arc<dyn SynapseHandler>>,
    replier: SynapseReplier,
}

type Answer = Result<Response<ReplyBody<()>>, Refusal>;

/// A request past proof, policy and body hash.
struct Admitted {
    caller: Caller,
    body: SynapseBody,
    priority: Priority,
    deadline: Deadline,
    arrived: Instant,
}

impl SynapseFront {
    pub(crate) fn new(admission: Arc<Admission>) -> Self {
        let replier = SynapseReplier::new(admission.verifier.receiver(), admission.config.external);
        Self { admission, synapses: Synapses::default(), handlers: HashMap::new(), replier }
    }

    pub(crate) fn sign_with(&mut self, key: Arc<Keypair>) {
        self.replier = self.replier.clone().signed_by(key);
    }

    pub(crate) fn add(&mut self, spec: SynapseSpec, handler: Option<Arc<dyn SynapseHandler>>) -> Result<(), AxonError> {
        let name = spec.name().to_owned();
        if self.synapses.find(&format!("/{name}")).is_some() {
            return Err(AxonError::DuplicateSynapse(name));
        }
        self.synapses = std::mem::take(&mut self.synapses).with(spec);
        self.handlers.extend(handler.map(|handler| (name, handler)));
        Ok(())
    }

    pub(crate) async fn answer(&self, in_flight: &InFlight, request: Request<Incoming>, arrived: Instant) -> Answered {
        let Some(synapse) = self.synapses.find(request.uri().path()) else {
            let refusal = Refusal::new(Category::NotFound, "Not Found");
            return refused("http", &refusal, refuse(&refusal));
        };
        if !matches!(*request.method(), Method::POST | Method::GET) {
            return refused("http", &wrong_method(), method_not_allowed());
        }
        let answered = match self.admit(synapse, in_flight, request, arrived).await {
            Ok(admitted) => {
                let caller = admitted.caller.clone();
                self.dispatch(synapse, admitted).await.map(|mut response| {
                    self.replier.sign(response.headers_mut(), &caller);
                    response
                })
            }
            Err(refusal) => Err(refusal),
        };
        match answered {
            Ok(response) => Answered { response, transport: "http", outcome: "ok" },
            Err(refusal) => refused("http", &refusal, refuse(&refusal)),
        }
    }

    async fn admit(
        &self,
        synapse: &Arc<SynapseSpec>,
        in_flight: &InFlight,
        request: Request<Incoming>,
        arrived: Instant,
    ) -> Result<Admitted, Refusal> {
        let (head, body) = request.into_parts();
        let mut body = RequestBody::plain(body, self.admission.body_limits());
        check_encoding(&head.headers)?;
        body.check_announced().map_err(|error| Refusal::new(error.category(), error.to_string()))?;
        let admission = &self.admission;
        let (receiver, limits) = (admission.verifier.receiver(), admission.verifier.limits());
        // All that proves the caller stands in the head: nobody else makes us read a body.
        let proved = read_head(&head.headers, synapse, receiver, limits)
            .and_then(|head| Ok((in_flight.verify(head.claim, 0)?, head.body_hash)))
            .map_err(|error| unverified(&error))
            .and_then(|(caller, hash)| {
                Ok((in_flight.decide(&caller, 0, synapse.name()).map_err(forbidden)?, caller, hash))
            });
        let (priority, caller, hash) = match proved {
            Ok(proved) => proved,
            Err(refusal) => {
                body.discard().await;
                return Err(refusal);
            }
        };
        let body = SynapseBody::parse(synapse, &hash, read(body).await?)
            .map_err(|error| Refusal::new(error.category(), error.to_string()))?;
        let deadline = admission.deadline(arrived, caller.timeout());
        Ok(Admitted { caller, body, priority, deadline, arrived })
    }

    async fn dispatch(&self, synapse: &SynapseSpec, admitted: Admitted) -> Answer {
        if let Some(handler) = self.handlers.get(synapse.name()) {
            return self.custom(handler.as_ref(), admitted).await;
        }
        match synapse.kind() {
            SynapseKind::Prompt => self.prompt(synapse, admitted).await,
            SynapseKind::Availability => self.availability(admitted).await,
            // The ping, and what else has neither question nor handler.
            _ => Ok(whole(self.replier.pong(&admitted.body, admitted.arrived.elapsed()))),
        }
    }

    async fn prompt(&self, synapse: &SynapseSpec, admitted: Admitted) -> Answer {
        let Admitted { caller, body, priority, deadline, arrived } = admitted;
        if body.asks_nothing() {
            return Ok(self.completed(synapse, &body, "", arrived));
        }
        let call = Call {
            caller,
            synapse: synapse.name().to_owned(),
            prompt: prompt(&body)?,
            dictated: dictated(&body)?,
            deadline: deadline.soft,
            n_completions: 1,
            task: body.text("task_name"),
            model: body.text("target_model"),
            logprobs: None,
        };
        let reply = self.admission.forward(call, priority, deadline).await?;
        let completion = reply.completions.into_iter().next().unwrap_or_default();
        Ok(self.completed(synapse, &body, &completion, arrived))
    }

    fn completed(
        &self,
        synapse: &SynapseSpec,
        body: &SynapseBody,
        text: &str,
        arrived: Instant,
    ) -> Response<ReplyBody<()>> {
        match synapse.is_streaming() {
            true => self.streamed(text, arrived),
            false => whole(self.replier.completion(body, text, arrived.elapsed())),
        }
    }

    async fn availability(&self, admitted: Admitted) -> Answer {
        let (tasks, models) =
            admitted.body.availability().map_err(|error| Refusal::new(error.category(), error.to_string()))?;
        let (tasks, models) = self.admission.availability(tasks, models).await?;
        let reply = AvailabilityReply { task_availabilities: tasks, llm_model_availabilities: models };
        let Ok(Value::Object(fields)) = serde_json::to_value(reply) else {
            return Err(Refusal::new(Category::Internal, "internal error"));
        };
        Ok(whole(self.replier.answer(&admitted.body, &fields, admitted.arrived.elapsed())))
    }

    async fn custom(&self, handler: &dyn SynapseHandler, admitted: Admitted) -> Answer {
        let Admitted { caller, body, priority, deadline, arrived } = admitted;
        let call = SynapseCall { caller, body: body.clone(), deadline: deadline.soft };
        match self.admission.work(priority, deadline, handler.call(call)).await? {
            SynapseAnswer::Fields(fields) => Ok(whole(self.replier.answer(&body, &fields, arrived.elapsed()))),
            SynapseAnswer::Text(text) => Ok(self.streamed(&text, arrived)),
        }
    }

    /// The text is whole by now, so the status stands before the first byte goes out.
    fn streamed(&self, text: &str, arrived: Instant) -> Response<ReplyBody<()>> {
        let pieces = stream_pieces(text).map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        let body = ReplyBody::pieces(pieces);
        self.replier.stream_head(arrived.elapsed()).map(|()| body)
    }
}

fn whole(response: Response<Bytes>) -> Response<ReplyBody<()>> {
    response.map(ReplyBody::whole)
}

fn prompt(body: &SynapseBody) -> Result<Prompt, Refusal> {
    body.prompt().map_err(|error: PromptError| Refusal::new(Category::Malformed, error.to_string()))
}

fn dictated(body: &SynapseBody) -> Result<Option<Dictated>, Refusal> {
    let dictated = body.dictated().map_err(|error| Refusal::new(error.category(), error.to_string()))?;
    Ok(dictated.map(Dictated::from))
}

fn unverified(error: &AuthError) -> Refusal {
    match error.category() {
        Category::Overloaded => Refusal::overloaded("too many sessions"),
        Category::RateLimited => Refusal::too_many_failures(error),
        category => Refusal::new(category, refusal_message(error)),
    }
}

/// The words that clients know.
fn forbidden(refusal: Refusal) -> Refusal {
    if refusal.category != Category::Forbidden {
        return refusal;
    }
    let message = format!("Forbidden. Key is blacklisted: {}.", refusal.message);
    Refusal { message: message.into(), ..refusal }
}
