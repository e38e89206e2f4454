//! The resolver of model files, as configured.

use std::collections::BTreeMap;

use anyhow::Context as _;
use idiolect_models::{Resolver, ResolverConfig};

use crate::config::ModelsSection;

/// Makes the resolver: the user's own settings of pip, uv and the hub, and ours above them.
///
/// # Errors
/// When the clients cannot be made, for instance over a certificate file that cannot be read.
pub fn resolver(models: &ModelsSection, env: &BTreeMap<String, String>) -> anyhow::Result<Resolver> {
    let mut config = ResolverConfig::from_variables(|name| env.get(name).cloned());
    if let Some(dir) = &models.cache_dir {
        config.cache_dir.clone_from(dir);
    }
    config.offline = models.offline;
    Resolver::new(config).context("cannot set up the fetching of models")
}
