//! The server's process: starting it, and what the kernel says of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    /// What a server of our own says; a miner says nothing.
    said: Option<BufReader<ChildStdout>>,
}

impl Server {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child =
            Command::new(std::env::current_exe()?).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let address = line.split_whitespace().next().context("the server did not start")?.parse()?;
        Ok(Self { address, child, said: Some(said) })
    }

    /// Starts a miner with the echo backend, which answers the callers of this program.
    pub(crate) async fn start_miner(program: &Path, data: &Path) -> anyhow::Result<Self> {
        let ready = data.join("ready.json");
        let mut command = Command::new(program);
        command.args(["--backend", "echo", "--hotkey-uri", "//Alice", "--blacklist.allow"]);
        for nth in 0..crate::N_KEYS {
            command.arg(crate::client::caller_key(nth)?.hotkey().to_string());
        }
        command.args(["--axon.port", "0", "--metrics.addr", "127.0.0.1:0", "--data-dir"]).arg(data);
        command.arg("--ready-file").arg(&ready).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Self { address: ([127, 0, 0, 1], 0).into(), child: command.spawn()?, said: None };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                let ready: serde_json::Value = serde_json::from_str(&text)?;
                server.address = ready["axon"].as_str().context("the ready file names no axon")?.parse()?;
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("the miner was not ready within 30 s")
    }

    /// CPU time in user and system mode so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name of the program may hold blanks; what follows its bracket does not.
        let fields: Vec<&str> = stat.rsplit_once(')').context("no process")?.1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// Returns how many nonces it keeps, of a server of our own.
    pub(crate) fn n_nonces(&mut self) -> anyhow::Result<Option<usize>> {
        let (Some(said), Some(stdin)) = (&mut self.said, &mut self.child.stdin) else { return Ok(None) };
        writeln!(stdin)?;
        let mut line = String::new();
        said.read_line(&mut line)?;
        Ok(Some(line.trim().parse()?))
    }

    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib / 1024.0)
    }
}

/// `USER_HZ`, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

impl Drop for Server {
    fn drop(&mut self) {
        // Its input ends, and with it the server; a miner has none.
        if self.child.stdin.take().is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
