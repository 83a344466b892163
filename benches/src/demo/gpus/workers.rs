//! The demo's client processes, from the demo's side. Invariant: none outlives this: a drop kills and waits.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::{
    super::DemoArgs,
    words::{Device, Order, Role, Seen},
};

/// This binary once more, in a role.
fn start(args: &DemoArgs, role: &Role, variables: &[(&str, &str)]) -> anyhow::Result<Child> {
    let mut command = Command::new(env::current_exe().context("find this program's own file")?);
    command.args(["demo", "--gpus", "1", "--gpu-role", &serde_json::to_string(role)?]);
    command.args(["--seed", &args.seed.to_string(), "--block-bytes", &format!("{}B", args.block_bytes)]);
    if let Some(library) = &args.cuda_library {
        command.arg("--cuda-library").arg(library);
    }
    command.envs(variables.iter().copied()).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if matches!(role, Role::Client { .. }) {
        command.stderr(Stdio::inherit());
    }
    // SAFETY: between fork and exec only one prctl is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().context("start a process of the demo")
}

/// The GPUs that a process sees: asked in one of its own, so that the driver is loaded in none that starts others.
pub fn probe(args: &DemoArgs) -> anyhow::Result<Vec<Device>> {
    let output = start(args, &Role::Probe, &[])?.wait_with_output().context("look for GPUs")?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).context("read what GPUs there are");
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().rfind(|line| !line.is_empty()).unwrap_or("it says nothing");
    bail!("{}", why.trim_start_matches("lapis: "))
}

/// A client on a GPU.
pub struct Worker {
    pub name: String,
    pub device: u16,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(
        args: &DemoArgs,
        socket: &str,
        device: u16,
        name: &str,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let role = Role::Client { socket: socket.into(), device, name: name.into() };
        let mut child = start(args, &role, variables)?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("asked for above"));
        Ok(Self { name: name.into(), device, child, orders, answers })
    }

    /// Answered by [`Self::answer`], in turn.
    pub fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().expect("open until the end");
        writeln!(orders, "{}", serde_json::to_string(order)?).with_context(|| format!("{} has ended", self.name))
    }

    pub fn answer(&mut self) -> anyhow::Result<Seen> {
        let mut line = String::new();
        self.answers.read_line(&mut line).with_context(|| format!("hear {}", self.name))?;
        if line.is_empty() {
            bail!("{} ended: {}", self.name, self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("understand {}", self.name))
    }

    pub fn ask(&mut self, order: &Order) -> anyhow::Result<Seen> {
        self.tell(order)?;
        self.answer()
    }

    /// SIGKILL, then waits for the end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill a client")?;
        self.child.wait().map(drop).context("wait for a client's end")
    }

    /// Lets it end by itself, as a process does that gives back what it has.
    pub fn finish(mut self) -> anyhow::Result<()> {
        drop(self.orders.take());
        let status = self.child.wait().context("wait for a client's end")?;
        anyhow::ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        if self.kill().is_err() {
            eprintln!("lapis: process {} could not be ended", self.child.id());
        }
    }
}
