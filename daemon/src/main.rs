//! `lapis`: the daemon and its tools, one binary.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use lapis_config::{Effective, Flags, LoadInput, LogLevel, Options};
use lapis_transport::control;

mod cert;
mod fsck;
mod holder;
mod show;

#[derive(Parser)]
#[command(name = "lapis", version, about = "A tiered KV-cache store for LLM inference: one daemon per GPU host")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon of this host
    Serve {
        /// Configuration file (TOML); without it the defaults run
        #[arg(long, short, env = "LAPIS_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Keep the daemon's memory over its restarts, where there is no systemd
    Hold {
        /// Unix socket to keep descriptors over (give it to `lapis serve --hold-socket`)
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Show Lapis at work: a daemon, a real client, a request trace, a kill -9 in the middle
    Demo(lapis_benches::demo::DemoArgs),
    /// Replay traces through the cache policy alone and count hits
    Replay(lapis_benches::replay::ReplayArgs),
    /// Say which sizes of DRAM and SSD buy which hit rate of a trace, and what is written to SSD for it
    Plan(lapis_benches::plan::PlanArgs),
    /// Make a request trace, or describe one
    Trace(lapis_benches::trace::TraceArgs),
    /// Measure this machine: every figure beside its limit
    Bench(lapis_benches::bench::BenchArgs),
    /// Show what a running daemon holds
    Status {
        /// The group's socket
        #[arg(long, env = "LAPIS_SERVER_SOCKET", value_name = "PATH")]
        socket: Option<PathBuf>,
        /// One JSON document instead of tables
        #[arg(long)]
        json: bool,
    },
    /// Hand this host's blocks over to others before it goes away: they read the hottest, as far as they have room. Until it
    /// is stopped it takes no more puts, and serves what it has
    Drain {
        /// The group's socket
        #[arg(long, env = "LAPIS_SERVER_SOCKET", value_name = "PATH")]
        socket: Option<PathBuf>,
        /// How long it may take
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
        within: Duration,
    },
    /// Check files or devices of the SSD tier: what is whole, what is torn and why. Reads only; exit status 0 whole, 1
    /// damaged, 2 not to be read
    Fsck(fsck::FsckArgs),
    /// Check this host against a configuration: limits, huge pages, io_uring, devices, sockets. Run it as the daemon's
    /// user; nothing is changed
    Doctor {
        /// Configuration file (TOML); without it defaults, variables and flags count
        #[arg(value_name = "FILE", env = "LAPIS_CONFIG")]
        file: Option<PathBuf>,
        /// One JSON document instead of lines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Show where this host's memory, GPUs, NICs and drives lie, how far they are from each other, and what Lapis does with it
    Topology {
        /// Configuration file (TOML); without it defaults, variables and flags count
        #[arg(value_name = "FILE", env = "LAPIS_CONFIG")]
        file: Option<PathBuf>,
        /// One JSON document instead of lines
        #[arg(long)]
        json: bool,
        /// Where /sys is: a copy of another host's, for example
        #[arg(long, value_name = "FOLDER", default_value = "/sys")]
        sys: PathBuf,
        #[command(flatten)]
        flags: Flags,
    },
    /// Make a private authority and certificates of hosts, for trying out peers
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Check a configuration; print what is in force, where each value came from, and the bytes of the tables
    CheckConfig {
        /// Configuration file (TOML); without it defaults, variables and flags are checked
        #[arg(value_name = "FILE", env = "LAPIS_CONFIG")]
        file: Option<PathBuf>,
        /// Print an example file with every option instead
        #[arg(long)]
        example: bool,
        #[command(flatten)]
        flags: Flags,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lapis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if let Command::Fsck(args) = &command {
        return Ok(fsck::run(args));
    }
    run_plain(command).map(|()| ExitCode::SUCCESS)
}

fn run_plain(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fsck(_) => unreachable!("it has exit statuses of its own"),
        Command::Serve { config, flags } => {
            let effective = load(config.clone(), flags.clone())?;
            log_to_stderr(effective.options.log_level);
            lapis::serve::run(&effective, Box::new(move || load(config.clone(), flags.clone())))
        }
        Command::Hold { path } => {
            log_to_stderr(LogLevel::Info);
            holder::run(&path)
        }
        Command::Demo(args) => lapis_benches::demo::run(args),
        Command::Replay(args) => lapis_benches::replay::run(&args),
        Command::Plan(args) => lapis_benches::plan::run(&args),
        Command::Trace(args) => lapis_benches::trace::run(&args),
        Command::Bench(args) => lapis_benches::bench::run(args),
        Command::Status { socket, json } => show::run(socket, json),
        Command::Drain { socket, within } => show::drain(socket, within),
        Command::Doctor { file, json, flags } => lapis::doctor::run(&load(file, flags)?, json),
        Command::Topology { file, json, sys, flags } => {
            let layout = lapis::topology::Layout::for_show(&sys, &load(file, flags)?.options);
            match json {
                true => println!("{}", lapis::topology::show::json(&layout)?),
                false => print!("{}", lapis::topology::show::text(&layout)),
            }
            Ok(())
        }
        Command::Cert(command) => cert::run(&command),
        Command::CheckConfig { example: true, .. } => {
            print!("{}", lapis_config::example());
            Ok(())
        }
        Command::CheckConfig { file, flags, .. } => {
            print!("{}", load(file, flags)?.render(control::BYTES));
            Ok(())
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    lapis_config::duration(text).map_err(|mistake| mistake.to_string())
}

fn load(file: Option<PathBuf>, flags: Flags) -> anyhow::Result<Effective> {
    Ok(Options::load(&LoadInput::here(file.as_deref(), flags.0))?)
}

fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(terminal).init();
}
