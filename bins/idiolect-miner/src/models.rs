//! The resolver of model files, as configured.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use anyhow::Context as _;
use idiolect_models::{ModelFiles, Resolver, ResolverConfig};

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

/// Asks the system to read a model's files into memory, all at once and in the background: loaders read a tensor at a time,
/// and beside other work on the disk each of them would wait its turn.
pub(crate) async fn read_ahead(files: &ModelFiles) {
    let paths: Vec<PathBuf> = files.files.values().cloned().collect();
    // A loader that follows says what is wrong with a file.
    let _ = tokio::task::spawn_blocking(move || {
        paths.iter().filter_map(|path| File::open(path).ok()).for_each(|file| advise(&file))
    })
    .await;
}

#[cfg(target_os = "linux")]
fn advise(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &File) {}
