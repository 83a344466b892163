//! A holder and a daemon, real processes of the `lapis` binary in a temporary folder, as a machine would run them.
//!
//! Invariant: neither outlives this process: a drop kills and waits for both and removes the folder, and the kernel
//! kills them with the thread that started them.

use std::{
    env, fs,
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lapis_client::{Client, ConnectOptions};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

/// How long a daemon or a holder may take to answer, whatever else the machine does.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Between two tries to reach a starting process: less than what a start takes, more than a try costs.
const TRY_EVERY: Duration = Duration::from_micros(200);
/// Of a log that explains a failure, bytes.
const LOG_TAIL_BYTES: usize = 2000;

/// What the daemon is told; all else has its default.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The `lapis` binary.
    pub binary: PathBuf,
    pub dram_bytes: u64,
    /// A file of so many bytes in the host's folder is the SSD tier.
    pub ssd_bytes: Option<u64>,
    /// Whether a holder keeps the daemon's memory over its death.
    pub hold: bool,
    /// More flags of `lapis serve`.
    pub flags: Vec<String>,
}

impl HostOptions {
    /// For this very binary, with a holder.
    pub fn here(dram_bytes: u64) -> anyhow::Result<Self> {
        let binary = env::current_exe().context("find this program's own file")?;
        Ok(Self { binary, dram_bytes, ssd_bytes: None, hold: true, flags: Vec::new() })
    }
}

/// The running pair. Start and restart it on a thread that lives as long as it shall.
#[derive(Debug)]
pub struct Host {
    options: HostOptions,
    daemon: Option<Child>,
    holder: Option<Child>,
    started: Instant,
    /// Last: removed when both have ended.
    folder: TempDir,
}

impl Host {
    /// Starts the holder and the daemon; the daemon may not be ready yet.
    pub fn start(options: HostOptions) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lapis-").tempdir().context("make a temporary folder")?;
        let mut host = Self { options, daemon: None, holder: None, started: Instant::now(), folder };
        if host.options.hold {
            host.start_holder()?;
        }
        host.start_daemon()?;
        Ok(host)
    }

    /// The Unix socket for clients.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("lapis.sock")
    }

    /// The file of the SSD tier, if there is one.
    pub fn ssd_path(&self) -> PathBuf {
        self.folder.path().join("blocks.ssd")
    }

    /// What the next daemon is told.
    pub fn options_mut(&mut self) -> &mut HostOptions {
        &mut self.options
    }

    /// Where everything of this host lies that has a name.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's process, while there is one.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The holder's process, while there is one.
    pub fn holder_pid(&self) -> Option<u32> {
        self.holder.as_ref().map(Child::id)
    }

    /// All that daemons of this host have written so far.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default()
    }

    /// Just before the exec of the daemon.
    pub fn started(&self) -> Instant {
        self.started
    }

    fn hold_socket(&self) -> PathBuf {
        self.folder.path().join("hold.sock")
    }

    /// Starts the holder; returns when it listens.
    pub fn start_holder(&mut self) -> anyhow::Result<()> {
        assert!(self.holder.is_none(), "one holder at a time");
        let mut command = Command::new(&self.options.binary);
        command.arg("hold").arg(self.hold_socket());
        self.holder = Some(self.spawn(command, "hold.log").context("start `lapis hold`")?);
        self.until("the holder", |host| Ok(listens(&host.hold_socket())?.then_some(())))
    }

    /// Starts the daemon; the answer is when, just before the exec.
    pub fn start_daemon(&mut self) -> anyhow::Result<Instant> {
        assert!(self.daemon.is_none(), "one daemon at a time");
        let mut command = Command::new(&self.options.binary);
        command.arg("serve").arg("--server-socket").arg(self.socket());
        command.arg("--dram-bytes").arg(format!("{}B", self.options.dram_bytes));
        command.args(["--metrics-listen", "off"]);
        if let Some(bytes) = self.options.ssd_bytes {
            command.arg("--ssd-paths").arg(self.ssd_path()).arg("--ssd-bytes").arg(format!("{bytes}B"));
        }
        if self.options.hold {
            command.arg("--hold-socket").arg(self.hold_socket());
        }
        command.args(&self.options.flags);
        self.started = Instant::now();
        self.daemon = Some(self.spawn(command, "daemon.log").context("start `lapis serve`")?);
        Ok(self.started)
    }

    /// A client of the daemon, as soon as it takes one.
    pub fn connect(&mut self, name: &str) -> anyhow::Result<Client> {
        let options = ConnectOptions { name: name.into(), ..ConnectOptions::default() };
        self.until("the daemon", |host| match Client::connect(host.socket(), options.clone()) {
            Ok(client) => Ok(Some(client)),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// SIGTERM, then waits for the end: it drains first.
    pub fn stop_daemon(&mut self) -> anyhow::Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("there is no daemon to stop")?;
        kill_process(Pid::from_child(&daemon), Signal::TERM).context("tell the daemon to stop")?;
        daemon.wait().context("wait for the daemon's end")
    }

    /// SIGKILL, then waits for the end.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            end(&mut daemon).context("kill the daemon")?;
        }
        Ok(())
    }

    /// SIGKILL, then waits for the end. What it kept is gone, but for what the daemon has itself.
    pub fn kill_holder(&mut self) -> anyhow::Result<()> {
        if let Some(mut holder) = self.holder.take() {
            end(&mut holder).context("kill the holder")?;
        }
        Ok(())
    }

    /// Calls `ready` until it has something; fails when the daemon or the holder ends or it takes too long, with the log.
    pub fn until<T>(&mut self, what: &str, ready: impl FnMut(&Self) -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        self.within(READY_WITHIN, what, ready)
    }

    /// The same, with another limit.
    pub fn within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut ready: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = ready(self)? {
                return Ok(value);
            }
            if let Some(status) = self.ended()? {
                bail!("while waiting for {what}, a process ended with {status}\n{}", self.log_tail());
            }
            if started.elapsed() > limit {
                bail!("waited {limit:?} for {what}\n{}", self.log_tail());
            }
            std::thread::sleep(TRY_EVERY);
        }
    }

    /// How the daemon or the holder ended, if one did by itself.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        for child in [&mut self.daemon, &mut self.holder].into_iter().flatten() {
            if let Some(status) = child.try_wait().context("look after a child process")? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// The last lines that holder and daemon wrote.
    pub fn log_tail(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        let text = format!("{}{}", read("hold.log"), read("daemon.log"));
        let start = text.len().saturating_sub(LOG_TAIL_BYTES);
        let start = (start..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text[start..].trim_end().to_string()
    }

    fn spawn(&self, mut command: Command, log: &str) -> anyhow::Result<Child> {
        let path = self.folder.path().join(log);
        let log = File::options().create(true).append(true).open(path).context("open a log")?;
        // Embedded defaults, and nothing of a service that we may run in.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            // Those of the stand-in for a GPU's driver are no options of ours.
            let is_ours = ["LAPIS_", "LISTEN_", "NOTIFY_", "WATCHDOG_"].iter().any(|prefix| text.starts_with(prefix));
            if is_ours && !text.starts_with("LAPIS_CUDA_") {
                command.env_remove(&name);
            }
        }
        // Its own process group: a Ctrl-C is for us, who then end the children in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: between fork and exec only one prctl is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        Ok(command.spawn()?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for mut child in [self.daemon.take(), self.holder.take()].into_iter().flatten() {
            if let Err(error) = end(&mut child) {
                eprintln!("lapis: process {} could not be ended: {error}", child.id());
            }
        }
    }
}

/// Whether somebody listens at a Unix socket: its file is there a little earlier.
fn listens(path: &Path) -> anyhow::Result<bool> {
    let address = SocketAddrUnix::new(path).with_context(|| format!("use {} for a socket", path.display()))?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok(connect(&socket, &address).is_ok())
}

fn end(child: &mut Child) -> std::io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}
