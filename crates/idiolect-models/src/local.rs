//! Models that are files on this machine already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{ModelError, ModelFiles, choose};

/// Expands a leading `~/`.
pub(crate) fn expand(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// The model that a file or folder holds. Companion files beside a single safetensors file belong to it.
pub(crate) fn resolve(path: &Path) -> Result<ModelFiles, ModelError> {
    let meta = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        _ => ModelError::Io { action: "read", path: path.to_owned(), source },
    })?;
    if meta.is_dir() {
        let chosen = choose::model_files(&file_names(path)?);
        let chosen = chosen.map_err(|problem| ModelError::NoModel { place: path.display().to_string(), problem })?;
        return Ok(files_in(path, path, chosen));
    }
    // A file that cannot be opened should be told of now, not by the engine.
    std::fs::File::open(path).map_err(ModelError::io("open", path))?;
    if meta.len() == 0 {
        return Err(ModelError::NoModel { place: path.display().to_string(), problem: "the file is empty".into() });
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with(".safetensors") {
        let mut beside = file_names(folder)?;
        beside.retain(|other| *other == name || !other.ends_with(".safetensors") && !other.ends_with(".gguf"));
        if let Ok(chosen) = choose::model_files(&beside) {
            return Ok(files_in(path, folder, chosen));
        }
    }
    Ok(files_in(path, folder, vec![name]))
}

fn files_in(named: &Path, folder: &Path, names: Vec<String>) -> ModelFiles {
    let files: BTreeMap<String, PathBuf> = names.into_iter().map(|name| (name.clone(), folder.join(name))).collect();
    ModelFiles {
        name: named.file_name().map_or_else(|| named.display().to_string(), |name| name.to_string_lossy().into_owned()),
        dir: folder.to_owned(),
        files,
        sha256: None,
        source: named.display().to_string(),
        cached: true,
    }
}

fn file_names(folder: &Path) -> Result<Vec<String>, ModelError> {
    let entries = std::fs::read_dir(folder).map_err(ModelError::io("read", folder))?;
    let name =
        |entry: std::fs::DirEntry| entry.path().is_file().then(|| entry.file_name().into_string().ok()).flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| name(entry.ok()?)).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(folder.path().join(file), b"x").unwrap();
        }
        folder
    }

    fn names(files: &ModelFiles) -> Vec<&str> {
        files.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn files_and_folders_resolve_where_they_are() {
        let place = folder(&["model.safetensors", "config.json", "tokenizer.json", "notes.txt", "b.gguf"]);
        let file = resolve(&place.path().join("b.gguf")).unwrap();
        assert_eq!((names(&file), file.weights()), (vec!["b.gguf"], Some(place.path().join("b.gguf").as_path())));
        let file = resolve(&place.path().join("model.safetensors")).unwrap();
        assert_eq!(names(&file), ["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(file.weights(), Some(place.path().join("model.safetensors").as_path()));
        fs::remove_file(place.path().join("b.gguf")).unwrap();
        assert_eq!(names(&resolve(place.path()).unwrap()), ["config.json", "model.safetensors", "tokenizer.json"]);
    }

    #[test]
    fn what_cannot_work_is_told() {
        let place = folder(&["a.gguf", "b.gguf"]);
        let error = resolve(&place.path().join("c.gguf")).unwrap_err().to_string();
        assert!(error.ends_with("c.gguf does not exist"), "{error}");
        let error = resolve(place.path()).unwrap_err().to_string();
        assert!(error.ends_with("holds several models; name one of a.gguf, b.gguf"), "{error}");
        fs::write(place.path().join("empty.gguf"), b"").unwrap();
        assert!(resolve(&place.path().join("empty.gguf")).unwrap_err().to_string().ends_with("the file is empty"));
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        assert_eq!(expand(Path::new("~/m.gguf"), Some(Path::new("/h"))), Path::new("/h/m.gguf"));
        assert_eq!(expand(Path::new("/x/~"), Some(Path::new("/h"))), Path::new("/x/~"));
        assert_eq!(expand(Path::new("~/m.gguf"), None), Path::new("~/m.gguf"));
    }
}
