//! The backend against a server on loopback that speaks the API, well and badly.

mod conformance;
mod faults;
mod secrets;
mod server;
