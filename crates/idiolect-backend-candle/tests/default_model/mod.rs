//! The default model, and what it is asked.

use std::sync::Arc;

use idiolect_backend::{Message, Request};
use idiolect_backend_candle::{CandleBackend, CandleConfig};

/// Loads the default model. The settings are small enough that the tests see every limit.
pub(crate) fn load(change: impl FnOnce(&mut CandleConfig)) -> Arc<CandleBackend> {
    let files = idiolect_models::testing::model("smollm2-135m").expect("the default model");
    let mut config = CandleConfig::default();
    config.context_tokens = 512;
    if let Ok(device) = std::env::var("IDIOLECT_TEST_DEVICE") {
        config.device = device.parse().expect("IDIOLECT_TEST_DEVICE names a device");
    }
    change(&mut config);
    Arc::new(CandleBackend::load(files.weights().expect("a weights file"), config).expect("it loads"))
}

pub(crate) fn request(prompt: &str) -> Request {
    let mut request = Request::new(vec![Message::user(prompt)]);
    request.sampling.max_tokens = 16;
    request.sampling.seed = Some(11);
    request
}
