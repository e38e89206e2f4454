//! `/v1/chat/completions`: the Epistula and btauth generations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use idiolect_protocol::openai::{self, ChatRequest, ErrorReply, ReplyHead, StreamedReply};
use idiolect_protocol::{AuthError, Caller, Category, Claim, Hotkey, Transport, btauth, epistula, status};

use crate::admission::{Admission, InFlight, Refusal};
use crate::body::{ReplyBody, RequestBody};
use crate::connection::Answered;
use crate::handler::{Call, Dictated, Reply, ReplyLogprob};
use crate::http::{add_retry_after, check_encoding, json, read, refused, with_type};
use crate::queue::Priority;

pub(crate) async fn answer(
    admission: &Admission,
    in_flight: &InFlight,
    request: Request<Incoming>,
    arrived: Instant,
) -> Answered {
    let transport = transport(&request);
    match try_answer(admission, in_flight, request, arrived).await {
        Ok(response) => Answered { response, transport, outcome: "ok" },
        Err(refusal) => refused(transport, &refusal, refuse(&refusal)),
    }
}

fn transport<B>(request: &Request<B>) -> &'static str {
    if btauth::is_btauth(request.headers()) { Transport::Btauth.as_str() } else { Transport::Epistula.as_str() }
}

async fn try_answer(
    admission: &Admission,
    in_flight: &InFlight,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Response<ReplyBody<()>>, Refusal> {
    let (head, body) = request.into_parts();
    // The signatures cover the body, so it has to be read first; who sends none of them is not listened to.
    if !btauth::is_btauth(&head.headers) && !epistula::is_epistula(&head.headers) {
        return Err(Refusal::new(Category::Unauthenticated, "Missing signature"));
    }
    check_encoding(&head.headers)?;
    in_flight.check_failures(claimed(&head.headers)).map_err(unverified)?;
    let body = read(RequestBody::plain(body, admission.body_limits())).await?;
    let caller =
        claim(admission, &head, &body).and_then(|claim| in_flight.verify(claim, body.len())).map_err(unverified)?;
    let priority = in_flight.decide(&caller, body.len(), openai::CHAT_PATH)?;
    let chat = ChatRequest::from_json(&body).map_err(|error| Refusal::new(Category::Malformed, error.to_string()))?;
    drop(body);
    let stream = chat.stream;
    let reply = complete(admission, &head, caller, chat, priority, arrived).await?;
    let head = reply_head(&reply.model);
    if stream { Ok(streamed(head, reply)) } else { whole(head, reply) }
}

/// The key that the request claims, as far as that can be told by now.
fn claimed(headers: &HeaderMap) -> Option<Hotkey> {
    let name = if btauth::is_btauth(headers) { btauth::HOTKEY_HEADER } else { epistula::SIGNED_BY_HEADER };
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn claim(admission: &Admission, head: &request::Parts, body: &[u8]) -> Result<Claim, AuthError> {
    let (receiver, limits) = (admission.verifier.receiver(), admission.verifier.limits());
    if !btauth::is_btauth(&head.headers) {
        return epistula::claim(&head.headers, body, receiver, limits);
    }
    let target = head.uri.path_and_query().map_or(openai::CHAT_PATH, http::uri::PathAndQuery::as_str);
    let parts = btauth::SignedParts { method: head.method.as_str(), target, body };
    btauth::claim(&head.headers, parts, receiver, limits)
}

pub(crate) fn unverified(error: AuthError) -> Refusal {
    match error.category() {
        Category::Overloaded => Refusal::overloaded("too many sessions"),
        Category::RateLimited => Refusal::too_many_failures(&error),
        category => Refusal::new(category, error.to_string()),
    }
}

async fn complete(
    admission: &Admission,
    head: &request::Parts,
    caller: Caller,
    chat: ChatRequest,
    priority: Priority,
    arrived: Instant,
) -> Result<Reply, Refusal> {
    let dictated = epistula::dictated(&head.headers, &chat);
    let timeout = [caller.timeout(), chat.timeout].into_iter().flatten().min();
    let deadline = admission.deadline(arrived, timeout);
    let n_completions = if chat.stream || dictated.is_some() { 1 } else { chat.n };
    let call = Call {
        caller,
        synapse: openai::CHAT_PATH.to_owned(),
        logprobs: chat.wanted_logprobs(dictated.is_some()),
        deadline: deadline.soft,
        n_completions: n_completions.min(admission.config.n_multi_completions),
        task: chat.task.or_else(|| task_header(head)),
        model: chat.model,
        dictated: dictated.map(Dictated::from),
        prompt: chat.prompt,
    };
    admission.forward(call, priority, deadline).await
}

/// The reference client repeats the body's task in a header, and the reference miner reads only that.
fn task_header(head: &request::Parts) -> Option<String> {
    let task = head.headers.get("task")?.to_str().ok()?;
    (task.len() <= MAX_TASK_BYTES).then(|| task.to_owned())
}

const MAX_TASK_BYTES: usize = 256;

fn reply_head(model: &str) -> ReplyHead {
    static N_REPLIES: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let n = N_REPLIES.fetch_add(1, Ordering::Relaxed);
    ReplyHead {
        id: format!("chatcmpl-{:x}{:08x}{n:x}", now.as_secs(), now.subsec_nanos()),
        created: now.as_secs(),
        model: model.to_owned(),
    }
}

fn wire_logprobs(logprobs: Option<Vec<ReplyLogprob>>) -> Option<Vec<openai::TokenLogprob>> {
    let token = |entry: ReplyLogprob| openai::TokenLogprob {
        top_logprobs: entry.top.into_iter().map(|(token, logprob)| openai::TopLogprob { token, logprob }).collect(),
        token: entry.token,
        logprob: entry.logprob,
    };
    logprobs.map(|entries| entries.into_iter().map(token).collect())
}

fn finish_reason(reply: &Reply) -> &'static str {
    if reply.finish_reason.is_empty() { "stop" } else { reply.finish_reason }
}

fn whole(head: ReplyHead, reply: Reply) -> Result<Response<ReplyBody<()>>, Refusal> {
    let finish_reason = finish_reason(&reply);
    json(StatusCode::OK, &head.completion(reply.completions, wire_logprobs(reply.logprobs), finish_reason))
}

fn streamed(head: ReplyHead, reply: Reply) -> Response<ReplyBody<()>> {
    let finish_reason = finish_reason(&reply).to_owned();
    let text = reply.completions.into_iter().next().unwrap_or_default();
    let reply = StreamedReply { head, text, logprobs: wire_logprobs(reply.logprobs), finish_reason };
    let mut response = with_type(StatusCode::OK, openai::EVENT_STREAM, ReplyBody::pieces(reply.events()));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Errors in the shape that OpenAI's clients read.
fn refuse(refusal: &Refusal) -> Response<ReplyBody<()>> {
    let status = status::http_status(refusal.category);
    let body = ErrorReply::new(refusal.category, refusal.message.clone());
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = with_type(status, "application/json", ReplyBody::whole(body.into()));
    add_retry_after(&mut response, refusal);
    response
}
