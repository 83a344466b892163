//! Makes the stand-in for SPDK of its C.

use std::{path::Path, process::Command};

/// Compiles both libraries into a folder, as SPDK's installation has them: a file with its version, and a link. `None`: this
/// host has no C compiler.
pub fn build(sources: &Path, folder: &Path) -> Option<()> {
    for (source, name, version) in [("spdk_env", "libspdk_env_dpdk", "16.1"), ("spdk_nvme", "libspdk_nvme", "17.0")] {
        let file = format!("{name}.so.{version}");
        let source = sources.join(format!("{source}.c"));
        let flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread", "-o"];
        let made = Command::new("cc").args(flags).arg(folder.join(&file)).arg(&source).output();
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: no C compiler");
                return None;
            }
            made => {
                let made = made.expect("cc runs");
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            }
        }
        std::os::unix::fs::symlink(&file, folder.join(format!("{name}.so"))).expect("a link");
    }
    Some(())
}
