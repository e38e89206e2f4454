//! Whether the server answers.

use std::time::Duration;

use async_openai::traits::RequestOptionsBuilder;
use idiolect_backend::Health;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::fault::Fault;
use crate::transport::{JSON, Server, accept};

/// How long a server may take to list its models.
const PATIENCE: Duration = Duration::from_secs(5);

/// A bad answer is asked for again sooner than a good one.
const BAD_TTL: Duration = Duration::from_secs(5);

/// What `GET /models` said, remembered for a while. Many may ask at the same time; the server is asked once.
#[derive(Debug)]
pub(crate) struct HealthCheck {
    server: Server,
    last: Mutex<Option<(Instant, Health)>>,
}

impl HealthCheck {
    pub(crate) fn new(server: Server) -> Self {
        Self { server, last: Mutex::new(None) }
    }

    pub(crate) async fn check(&self) -> Health {
        let mut last = self.last.lock().await;
        if let Some((at, health)) = last.as_ref() {
            let ttl = self.server.config.health_ttl;
            let ttl = if *health == Health::Ready { ttl } else { ttl.min(BAD_TTL) };
            if at.elapsed() < ttl {
                return health.clone();
            }
        }
        let health = self.ask().await;
        *last = Some((Instant::now(), health.clone()));
        health
    }

    async fn ask(&self) -> Health {
        let asking = async {
            let models = self.server.client.models().headers(accept(JSON));
            models.list_byot::<Value>().await.map_err(Fault::of)
        };
        match timeout(PATIENCE, asking).await.unwrap_or(Err(Fault::Silent(PATIENCE))) {
            // A server without that list answers all the same.
            Ok(_) | Err(Fault::Status { status: 404 | 405 | 501, .. }) => Health::Ready,
            Err(fault) => Health::Unavailable(fault.to_string()),
        }
    }
}
