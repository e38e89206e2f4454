//! What a [`Resolver`](crate::Resolver) needs to know.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use crate::Alias;
use crate::wheel::pip_config;

/// The settings of a [`Resolver`](crate::Resolver).
///
/// Nothing is read from the environment unless [`ResolverConfig::from_env`] makes the value.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResolverConfig {
    /// The folder that holds fetched models; shared by all processes of this user.
    pub cache_dir: PathBuf,
    /// Uses what is on this machine only.
    pub offline: bool,
    /// Asks the source again even when a model of an unpinned revision is cached.
    pub refresh: bool,
    /// Aliases besides the built-in ones; they win over built-ins of the same name.
    pub aliases: Vec<Alias>,
    /// The model hub.
    pub hub: HubConfig,
    /// Python package indexes.
    pub wheel: WheelConfig,
    /// Timeouts and trust.
    pub network: NetworkConfig,
    /// What a leading `~/` in a path stands for.
    pub home: Option<PathBuf>,
}

/// Where the model hub is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubConfig {
    /// The hub's base address.
    pub endpoint: String,
    /// Access token for gated repositories.
    pub token: Option<SecretString>,
    /// The hub client's own cache, looked at before anything is fetched.
    pub cache_dir: Option<PathBuf>,
    /// Only the hub's own cache is used, nothing is fetched from it.
    pub offline: bool,
}

/// Where wheels come from.
#[derive(Clone)]
#[non_exhaustive]
pub struct WheelConfig {
    /// Simple-index addresses, asked in order.
    pub indexes: Vec<Url>,
    /// Folders that hold wheels, looked at first (pip's `find-links`; addresses are left to pip).
    pub find_links: Vec<PathBuf>,
    /// The command that downloads a wheel when the direct way fails, as in `["python3", "-m", "pip"]`; empty: none.
    pub pip: Vec<String>,
    /// How long that command may go without a new byte on disk.
    pub pip_stall_timeout: Duration,
}

/// Timeouts and trust.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// Limit for name look-up, connecting and the TLS handshake.
    pub connect_timeout: Duration,
    /// Limit from the start of a request to the head of its answer.
    pub answer_timeout: Duration,
    /// Longest silence in the middle of a body before the transfer is resumed on a new connection.
    pub stall_timeout: Duration,
    /// How long a source may bring no byte, over all attempts, before the next source is asked. Once bytes have come in this
    /// fetch, it is the sum of `stall_timeout` and `answer_timeout` where that is more. The last source is given all attempts.
    pub failover_timeout: Duration,
    /// Attempts in a row that bring no new byte before a transfer counts as failed.
    pub attempts: u32,
    /// First wait between attempts; doubles each time.
    pub backoff: Duration,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Whether `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` count.
    pub use_proxies: bool,
}

/// The public Python package index.
pub const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// The public model hub.
pub const DEFAULT_HUB: &str = "https://huggingface.co";

impl ResolverConfig {
    /// Returns the defaults with this cache folder: public hub, public index, no token, pip as fallback.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            offline: false,
            refresh: false,
            aliases: Vec::new(),
            hub: HubConfig::default(),
            wheel: WheelConfig::default(),
            network: NetworkConfig::default(),
            home: None,
        }
    }

    /// Reads the environment and the user's pip, uv and hub settings.
    ///
    /// | what | from, first hit wins |
    /// | --- | --- |
    /// | cache folder | `IDIOLECT_MODELS`, `XDG_DATA_HOME/idiolect/models`, `LOCALAPPDATA\idiolect\models`, `~/.local/share/idiolect/models` |
    /// | offline | `IDIOLECT_OFFLINE` |
    /// | hub | `HF_ENDPOINT`, `HF_TOKEN` or the token file (`HF_TOKEN_PATH`, `HF_HOME/token`), `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE` |
    /// | indexes | `PIP_INDEX_URL`, `UV_DEFAULT_INDEX`, `UV_INDEX_URL`, pip's configuration files (`PIP_CONFIG_FILE` included), uv's; the extra indexes of the same |
    /// | folders of wheels | `PIP_FIND_LINKS`, `UV_FIND_LINKS`, the same files |
    /// | certificate authorities | `PIP_CERT`, `REQUESTS_CA_BUNDLE`, `cert` in pip's files (`SSL_CERT_FILE` counts anyway) |
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name).and_then(|value| value.into_string().ok()))
    }

    /// Like [`Self::from_env`], with the variables that `variable` returns instead of the process's own.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let mut config = Self::new(cache_dir(&get, home.as_ref()));
        config.offline = get("IDIOLECT_OFFLINE").is_some_and(|value| is_true(&value));
        config.hub = HubConfig::from_variables(&get, home.as_ref());
        let pip = pip_config::read(&get, home.as_deref());
        config.wheel.indexes = pip.indexes;
        config.wheel.find_links = pip.find_links;
        config.network.ca_files = pip.ca_files;
        config.home = home;
        config
    }
}

fn cache_dir(get: &impl Fn(&str) -> Option<String>, home: Option<&PathBuf>) -> PathBuf {
    if let Some(folder) = get("IDIOLECT_MODELS") {
        return folder.into();
    }
    let base = get("XDG_DATA_HOME").or_else(|| get("LOCALAPPDATA")).map(PathBuf::from);
    let base = base.or_else(|| home.map(|home| home.join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("idiolect").join("models")
}

fn is_true(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "false" | "no" | "off")
}

impl HubConfig {
    fn from_variables(get: &impl Fn(&str) -> Option<String>, home: Option<&PathBuf>) -> Self {
        let cache_home = get("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".cache")));
        let hub_home = get("HF_HOME").map(PathBuf::from).or_else(|| cache_home.map(|cache| cache.join("huggingface")));
        let token_file =
            get("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hub_home.as_ref().map(|hub| hub.join("token")));
        let saved = || token_file.and_then(|file| std::fs::read_to_string(file).ok());
        let token =
            get("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let cache = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_HUB.into()),
            token: token.map(SecretString::from),
            cache_dir: cache.or_else(|| hub_home.map(|hub| hub.join("hub"))),
            offline: get("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        }
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self { endpoint: DEFAULT_HUB.into(), token: None, cache_dir: None, offline: false }
    }
}

impl Default for WheelConfig {
    fn default() -> Self {
        Self {
            indexes: vec![DEFAULT_INDEX.parse().expect("a constant address")],
            find_links: Vec::new(),
            pip: ["python3", "-m", "pip"].map(String::from).to_vec(),
            pip_stall_timeout: Duration::from_secs(120),
        }
    }
}

impl fmt::Debug for WheelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indexes: Vec<String> = self.indexes.iter().map(crate::fetch::public_url).collect();
        f.debug_struct("WheelConfig")
            .field("indexes", &indexes)
            .field("find_links", &self.find_links)
            .field("pip", &self.pip)
            .field("pip_stall_timeout", &self.pip_stall_timeout)
            .finish()
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(8),
            stall_timeout: Duration::from_secs(20),
            failover_timeout: Duration::from_secs(9),
            attempts: 4,
            backoff: Duration::from_millis(500),
            ca_files: Vec::new(),
            use_proxies: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn with(variables: &[(&str, &str)]) -> ResolverConfig {
        ResolverConfig::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_folder_follows_the_usual_variables() {
        let folder = |variables: &[(&str, &str)]| with(variables).cache_dir;
        assert_eq!(folder(&[("IDIOLECT_MODELS", "/m"), ("HOME", "/h")]), PathBuf::from("/m"));
        assert_eq!(folder(&[("XDG_DATA_HOME", "/d"), ("HOME", "/h")]), PathBuf::from("/d/idiolect/models"));
        assert_eq!(folder(&[("HOME", "/h")]), PathBuf::from("/h/.local/share/idiolect/models"));
        assert_eq!(
            folder(&[("IDIOLECT_MODELS", ""), ("HOME", "/h")]),
            PathBuf::from("/h/.local/share/idiolect/models")
        );
    }

    #[test]
    fn hub_settings_come_from_its_own_variables() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let hub = with(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror.example"), ("HF_HUB_OFFLINE", "1")]).hub;
        assert_eq!(hub.endpoint, "http://mirror.example");
        assert!(hub.offline);
        assert_eq!(hub.cache_dir, Some(PathBuf::from(home).join("hub")));
        assert_eq!(hub.token.as_ref().unwrap().expose_secret(), "from-file");
        let hub = with(&[("HF_HOME", home), ("HF_TOKEN", "own"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0")]).hub;
        assert_eq!((hub.token.as_ref().unwrap().expose_secret(), hub.offline), ("own", false));
        assert_eq!(hub.cache_dir, Some("/c".into()));
        assert!(!format!("{hub:?}").contains("own\""));
        assert_eq!(with(&[]).hub.endpoint, DEFAULT_HUB);
    }

    #[test]
    fn credentials_stay_out_of_debug() {
        let config = with(&[("PIP_INDEX_URL", "https://user:secret@index.example/simple")]);
        assert_eq!(config.wheel.indexes[0].password(), Some("secret"));
        let text = format!("{config:?}");
        assert!(text.contains("index.example/simple") && !text.contains("secret"), "{text}");
    }
}
