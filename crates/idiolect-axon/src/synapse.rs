//! `POST /<Synapse>`: the HTTP generations.

use std::sync::Arc;
use std::time::Instant;

use ::http::Request;
use hyper::body::Incoming;
use idiolect_protocol::Category;

use crate::admission::{Admission, Refusal};
use crate::connection::Answered;
use crate::http::{refuse, refused};

pub(crate) struct SynapseFront {
    _admission: Arc<Admission>,
}

impl SynapseFront {
    pub(crate) fn new(admission: Arc<Admission>) -> Self {
        Self { _admission: admission }
    }

    pub(crate) async fn answer(&self, _request: Request<Incoming>, _arrived: Instant) -> Answered {
        let refusal = Refusal::new(Category::NotFound, "Not Found");
        refused("http", &refusal, refuse(&refusal))
    }
}
