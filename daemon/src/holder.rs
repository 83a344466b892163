//! `lapis hold`: keeps descriptors, does nothing else, ends on SIGTERM or SIGINT.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use lapis_transport::hold::Holder;

pub fn run(path: &Path) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone()).context("install a signal handler")?;
    }
    Holder::serve(path, &stop).with_context(|| format!("hold descriptors over {}", path.display()))?;
    Ok(())
}
