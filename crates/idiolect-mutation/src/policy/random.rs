//! The private seed of an installation, and the random numbers drawn by it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::PolicyError;

/// What an installation's draws depend on, beside the state and the request's number. Two miners with one seed would draw
/// alike, so it is private: it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl From<u64> for Seed {
    fn from(number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..16].copy_from_slice(b"policies");
        Self(bytes)
    }
}

impl From<[u8; 32]> for Seed {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Seed {
    /// Reads the seed out of a file, and makes the file if there is none, for its owner's eyes only (mode 0600). Of processes
    /// that do so at once all get the same seed.
    ///
    /// # Errors
    /// [`PolicyError::Damaged`] where the file holds something else, [`PolicyError::Io`] where it can be neither read nor made.
    pub fn read_or_create(path: &Path) -> Result<Self, PolicyError> {
        let io = |action, source| PolicyError::Io { action, path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(text) => return Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Self::parse("", path),
            Err(error) => return Err(io("read", error)),
        }
        // Written whole under another name first: a name that is there always has a whole seed behind it.
        let bytes: [u8; 32] = rand::random();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{:016x}", rand::random::<u64>()));
        let written = write_private(temporary.as_ref(), &format!("{text}\n"));
        let linked = written.and_then(|()| fs::hard_link(&temporary, path));
        let _ = fs::remove_file(&temporary);
        match linked {
            Ok(()) => Ok(Self(bytes)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::parse(&fs::read_to_string(path).map_err(|error| io("read", error))?, path)
            }
            Err(error) => Err(io("create", error)),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        let text = text.trim();
        let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        let is_hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
        match bytes.filter(|_| is_hex).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(PolicyError::Damaged {
                path: path.to_owned(),
                problem: format!("it holds {} bytes, expected a seed of 64 hexadecimal digits", text.len()),
                remedy: "remove it, and a new seed is made".to_owned(),
            }),
        }
    }

    /// Returns the random numbers of a request. Each `purpose` (0 to 3) has its own, so that one may use more of them without
    /// changing the others.
    pub(crate) fn random(&self, request: u64, purpose: u64) -> Random {
        let mut random = ChaCha8Rng::from_seed(self.0);
        random.set_stream(request.wrapping_mul(4).wrapping_add(purpose));
        Random(random)
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Random numbers. Logarithms and the like are computed in software, so that draws are the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number in [0, 1) of 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number below `n`, which must not be 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// Returns a standard normal number, by the polar method.
    pub(crate) fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                return x * (-2.0 * libm::log(square) / square).sqrt();
            }
        }
    }

    /// Returns a number of the gamma distribution with scale 1, after Marsaglia and Tsang (2000). The shape must be above 0.
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let unit = 1.0 - self.unit();
            return self.gamma(shape + 1.0) * libm::pow(unit, 1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x) * (1.0 + c * x) * (1.0 + c * x);
            let unit = 1.0 - self.unit();
            let squeeze = unit < 1.0 - 0.0331 * x * x * x * x;
            if v > 0.0 && (squeeze || libm::log(unit) < 0.5 * x * x + d * (1.0 - v + libm::log(v))) {
                return d * v;
            }
        }
    }

    /// Returns a number of the beta distribution, in [0, 1]. Both parameters must be above 0.
    pub(crate) fn beta(&mut self, alpha: f64, beta: f64) -> f64 {
        let (x, y) = (self.gamma(alpha), self.gamma(beta));
        let sum = x + y;
        // Both may be too small for a number.
        if sum > 0.0 { x / sum } else { alpha / (alpha + beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn betas_have_their_mean_and_variance() {
        let mut random = Seed::from(1).random(0, 0);
        for (a, b) in [(1.0, 1.0), (0.3, 0.7), (10.0, 10.0), (150.0, 50.0), (0.01, 3.0)] {
            let n = 20_000.0;
            let draws: Vec<f64> = (0..20_000).map(|_| random.beta(a, b)).collect();
            assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
            let mean = draws.iter().sum::<f64>() / n;
            let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let (expected_mean, sum) = (a / (a + b), a + b);
            let expected_variance = a * b / (sum * sum * (sum + 1.0));
            assert!((mean - expected_mean).abs() < 0.01, "{a} {b} {mean}");
            assert!((variance / expected_variance - 1.0).abs() < 0.15, "{a} {b} {variance} {expected_variance}");
        }
        assert!(random.beta(1e-300, 1e-300).is_finite());
    }

    #[test]
    fn a_seed_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        let seeds: Vec<Seed> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Seed::read_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]));
        assert_eq!(Seed::read_or_create(&path).unwrap(), seeds[0]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        assert_eq!(format!("{:?}", seeds[0]), "Seed(..)");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = dir.path().join("other");
        assert_ne!(Seed::read_or_create(&other).unwrap(), seeds[0]);
        for bad in ["x", "", &"é".repeat(32), &format!("+{}", "1".repeat(63))] {
            fs::write(&path, bad).unwrap();
            let error = Seed::read_or_create(&path).unwrap_err().to_string();
            assert!(error.contains("seed is damaged") && error.contains("remove it"), "{error}");
        }
    }

    #[test]
    fn requests_and_purposes_have_their_own_numbers() {
        let seed = Seed::from(7);
        let mut seen = std::collections::HashSet::new();
        for request in 0..50 {
            for purpose in 0..4 {
                assert!(seen.insert(seed.random(request, purpose).next()));
                assert_eq!(seed.random(request, purpose).next(), seed.random(request, purpose).next());
            }
        }
        assert_ne!(Seed::from(8).random(0, 0).next(), seed.random(0, 0).next());
    }
}
