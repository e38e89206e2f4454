//! Shared histories, and recorded rivals.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use idiolect_backend::Embedder;
use idiolect_uniqueness::{
    Distinctiveness, DistinctivenessError, HistoryStore, Panels, PostgresHistory, SqliteHistory, read_panel, store,
};

use crate::config::SharedHistory;

/// Recorded replies encoded at a time.
const AT_A_TIME: usize = 64;

/// Opens a shared history, making its tables where there are none.
///
/// # Errors
/// When it cannot be reached or used; passwords are left out.
pub async fn open(place: &SharedHistory) -> anyhow::Result<Arc<dyn HistoryStore>> {
    let opened: Result<Arc<dyn HistoryStore>, _> = match place {
        SharedHistory::Postgres(url) => {
            PostgresHistory::connect(url.expose()).await.map(|history| Arc::new(history) as _)
        }
        SharedHistory::Sqlite(path) => match store::open(path).await {
            Ok(pool) => SqliteHistory::open(pool).await.map(|history| Arc::new(history) as _),
            Err(error) => Err(error),
        },
    };
    opened.with_context(|| format!("the shared history {place} cannot be used; see uniqueness.shared_history"))
}

/// Reads what other prompts taught.
///
/// # Errors
/// When the file cannot be read, or is none of `idiolect mutate learn`.
pub fn distinctiveness(path: &Path) -> anyhow::Result<Distinctiveness> {
    let read = || -> Result<_, DistinctivenessError> { Distinctiveness::read(BufReader::new(File::open(path)?)) };
    let learnt = read().with_context(|| format!("uniqueness.distinctiveness: cannot use {}", path.display()))?;
    let (n_prompts, n_replies) = learnt.sources();
    tracing::info!(n_prompts, n_replies, slope = learnt.slope(), "what other prompts taught is loaded");
    Ok(learnt)
}

/// Reads a file of recorded rivals and encodes them.
///
/// # Errors
/// When the file cannot be read, a line of it is bad, or the encoder fails.
pub async fn panels(path: &Path, encoder: &dyn Embedder) -> anyhow::Result<Panels> {
    let file = path.to_path_buf();
    let read = move || -> anyhow::Result<_> { Ok(read_panel(&mut BufReader::new(File::open(file)?))?) };
    let read = tokio::task::spawn_blocking(read).await.context("reading broke off")?;
    let replies = read.with_context(|| format!("uniqueness.panel: cannot use {}", path.display()))?;
    let mut panels = Panels::new(encoder.name(), encoder.dimensions());
    for some in replies.chunks(AT_A_TIME) {
        let texts: Vec<String> = some.iter().map(|reply| reply.text.clone()).collect();
        let embeddings = encoder.embed(&texts).await.context("uniqueness.panel: its replies cannot be encoded")?;
        for (reply, embedding) in some.iter().zip(&embeddings) {
            panels.push(reply.prompt.as_deref(), reply.id.as_str(), embedding);
        }
    }
    tracing::info!(n_replies = panels.len(), "recorded rivals are loaded");
    Ok(panels)
}
