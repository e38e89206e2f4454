//! The axon over real sockets: every transport, good and bad; limits; stopping; the recorded requests of real clients.

mod chat;
mod grpc;
mod http;
mod killed;
mod limits;
mod recorded;
mod restart;
mod stopping;
mod strangers;
mod subnet;
mod support;
