//! The model hub: what a repository holds, what its client's cache holds, and the address of a file.
//!
//! Listings and the local cache go through `hf-hub` (cargo feature `hub`). The bytes come through our own ranged client, because
//! that one has no limit on silence, cannot continue a broken transfer, and does not let another source take over in time.
//! A file whose hash is known needs no listing, so it is fetched without `hf-hub`.

use std::path::PathBuf;

use reqwest::Url;

use crate::ModelError;
use crate::config::{HubConfig, NetworkConfig};
use crate::spec::HubSpec;

/// What the hub says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    pub(crate) path: String,
    pub(crate) sha256: Option<String>,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Hub<'a> {
    pub(crate) config: &'a HubConfig,
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only listings need it"))]
    pub(crate) network: &'a NetworkConfig,
}

impl Hub<'_> {
    /// The address that answers with the file's content, directly or by redirection.
    pub(crate) fn address(&self, spec: &HubSpec, file: &str) -> Result<Url, ModelError> {
        let fail = |problem: String| ModelError::Fetch { url: "HF_ENDPOINT".into(), problem, retryable: false };
        let mut url: Url = self.config.endpoint.parse().map_err(|error| fail(format!("{error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(fail("the hub's address is neither http nor https".into()));
        }
        {
            let mut segments = url.path_segments_mut().map_err(|()| fail("the hub's address has no path".into()))?;
            segments.pop_if_empty().extend(spec.repo.split('/')).push("resolve");
            segments.push(spec.revision.as_deref().unwrap_or("main")).extend(file.split('/'));
        }
        Ok(url)
    }
}

#[cfg(not(feature = "hub"))]
impl Hub<'_> {
    pub(crate) async fn list(&self, spec: &HubSpec) -> Result<Vec<HubFile>, ModelError> {
        Err(ModelError::NoHub { origin: spec.to_string() })
    }

    pub(crate) async fn describe(&self, spec: &HubSpec, _file: &str) -> Result<HubFile, ModelError> {
        Err(ModelError::NoHub { origin: spec.to_string() })
    }

    pub(crate) async fn cached(&self, _spec: &HubSpec, _file: &str) -> Option<PathBuf> {
        None
    }
}

#[cfg(feature = "hub")]
mod client {
    use futures_util::TryStreamExt as _;
    use hf_hub::repository::RepoTreeEntry;
    use hf_hub::{HFClient, HFError};
    use secrecy::ExposeSecret as _;

    use super::{Hub, HubFile, HubSpec, ModelError, PathBuf};
    use crate::fetch::root_cause;

    const NEEDS_TOKEN: &str = "it needs an access token: set HF_TOKEN";
    const NO_ACCESS: &str = "the access token does not give access to it";

    impl Hub<'_> {
        /// All files of the repository.
        pub(crate) async fn list(&self, spec: &HubSpec) -> Result<Vec<HubFile>, ModelError> {
            let client = self.client().map_err(|error| explain(spec, &error))?;
            let (owner, name) = hf_hub::split_id(&spec.repo);
            let revision = spec.revision.clone().unwrap_or_else(|| "main".into());
            let listing = async {
                let repository = client.model(owner, name);
                let entries = repository.list_tree().revision(revision).recursive(true).send()?;
                entries.try_collect::<Vec<_>>().await
            };
            let entries = self.in_time(spec, listing).await?;
            Ok(entries.into_iter().filter_map(hub_file).collect())
        }

        /// Size and, for large files, hash of one file.
        pub(crate) async fn describe(&self, spec: &HubSpec, file: &str) -> Result<HubFile, ModelError> {
            let client = self.client().map_err(|error| explain(spec, &error))?;
            let (owner, name) = hf_hub::split_id(&spec.repo);
            let revision = spec.revision.clone().unwrap_or_else(|| "main".into());
            let asking = async {
                let repository = client.model(owner, name);
                repository.get_paths_info().paths(vec![file.to_owned()]).revision(revision).send().await
            };
            let entries = self.in_time(spec, asking).await?;
            let found = entries.into_iter().filter_map(hub_file).find(|found| found.path == file);
            let problem =
                || format!("it has no file {file:?} at revision {}", spec.revision.as_deref().unwrap_or("main"));
            found.ok_or_else(|| ModelError::Fetch {
                url: format!("hub:{}", spec.repo),
                problem: problem(),
                retryable: false,
            })
        }

        /// The file in the cache of the hub's own clients, if it is there.
        pub(crate) async fn cached(&self, spec: &HubSpec, file: &str) -> Option<PathBuf> {
            self.config.cache_dir.as_ref()?;
            let client = self.client().ok()?;
            let (owner, name) = hf_hub::split_id(&spec.repo);
            let revision = spec.revision.clone().unwrap_or_else(|| "main".into());
            let repository = client.model(owner, name);
            let request =
                repository.download_file().filename(file.to_owned()).revision(revision).local_files_only(true);
            request.send().await.ok()
        }

        fn client(&self) -> Result<HFClient, HFError> {
            let http = reqwest::Client::builder()
                .connect_timeout(self.network.connect_timeout)
                .timeout(self.network.answer_timeout);
            let http = if self.network.use_proxies { http } else { http.no_proxy() };
            let mut builder = HFClient::builder()
                .endpoint(self.config.endpoint.clone())
                .client(http.build()?)
                // Another source may be quicker than a retry.
                .retry_max_attempts(0);
            if let Some(token) = &self.config.token {
                builder = builder.token(token.expose_secret());
            }
            match &self.config.cache_dir {
                Some(folder) => builder = builder.cache_dir(folder),
                None => builder = builder.cache_enabled(false),
            }
            builder.build()
        }

        async fn in_time<T>(
            &self,
            spec: &HubSpec,
            work: impl Future<Output = Result<T, HFError>>,
        ) -> Result<T, ModelError> {
            match tokio::time::timeout(self.network.answer_timeout, work).await {
                Ok(outcome) => outcome.map_err(|error| explain(spec, &error)),
                Err(_) => {
                    let problem = format!("no answer within {:?}", self.network.answer_timeout);
                    Err(ModelError::Fetch { url: format!("hub:{}", spec.repo), problem, retryable: true })
                }
            }
        }
    }

    fn hub_file(entry: RepoTreeEntry) -> Option<HubFile> {
        match entry {
            RepoTreeEntry::File { path, size, lfs, .. } => {
                Some(HubFile { path, sha256: lfs.and_then(|lfs| lfs.sha256), bytes: size })
            }
            RepoTreeEntry::Directory { .. } => None,
        }
    }

    fn explain(spec: &HubSpec, error: &HFError) -> ModelError {
        let (problem, retryable) = match error {
            HFError::RepoNotFound { .. } => ("no such repository".into(), false),
            HFError::RevisionNotFound { revision, .. } => (format!("it has no revision {revision:?}"), false),
            HFError::EntryNotFound { path, .. } => (format!("it has no file {path:?}"), false),
            HFError::AuthRequired { .. } => (NEEDS_TOKEN.into(), false),
            HFError::Forbidden { .. } => (NO_ACCESS.into(), false),
            HFError::RateLimited { .. } => ("HTTP 429: too many requests".into(), true),
            HFError::Http { context } => match context.status.as_u16() {
                401 => (NEEDS_TOKEN.into(), false),
                403 => (NO_ACCESS.into(), false),
                404 => ("no such repository, revision or file".into(), false),
                code => (format!("HTTP {}", context.status), code == 429 || code >= 500),
            },
            other => (root_cause(other), true),
        };
        ModelError::Fetch { url: format!("hub:{}", spec.repo), problem, retryable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Spec;

    #[test]
    fn files_are_addressed_below_the_endpoint() {
        let address = |endpoint: &str, spec: &str| {
            let config = HubConfig { endpoint: endpoint.into(), ..HubConfig::default() };
            let Ok(Spec::Hub(spec)) = spec.parse() else { panic!("{spec}") };
            let file = spec.file.clone().unwrap();
            Hub { config: &config, network: &NetworkConfig::default() }.address(&spec, &file).map(String::from)
        };
        assert_eq!(
            address("https://h.example", "hub:a/b/c d/e.gguf").unwrap(),
            "https://h.example/a/b/resolve/main/c%20d/e.gguf"
        );
        assert_eq!(
            address("https://h.example/m/", "hub:a/b/c@refs/pr/1").unwrap(),
            "https://h.example/m/a/b/resolve/refs%2Fpr%2F1/c"
        );
        assert!(address("ftp://h.example", "hub:a/b/c").is_err());
        assert!(address("nonsense", "hub:a/b/c").is_err());
    }
}
