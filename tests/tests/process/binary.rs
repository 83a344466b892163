//! The `lapis` binary and the C library beside this test: found, or built if missing or older than their sources.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

/// What the binary is made of; below the workspace.
const SOURCES: [&str; 8] = ["Cargo.toml", "benches", "clients/rust", "config", "daemon", "ssd", "tiering", "transport"];
/// What the C library is made of.
const C_SOURCES: [&str; 6] = ["Cargo.toml", "clients/c", "clients/rust", "config", "tiering/arena", "transport"];
/// What the stand-in for CUDA is made of.
const CUDA_SOURCES: [&str; 2] = ["Cargo.toml", "tests/cuda"];

/// Its path.
pub fn lapis() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| find_or_build("lapis", &SOURCES, &["-p", "lapis", "--bin", "lapis"])).clone()
}

/// The stand-in for the CUDA driver's library.
pub fn cuda_stand_in() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| find_or_build("libcuda.so", &CUDA_SOURCES, &["-p", "lapis-cuda-standin", "--lib"])).clone()
}

/// How the C library is built: with the features that `cargo test --workspace` gave what it stands on, which is not built
/// anew then. A package alone would have others, as all but the Python module would; a test among what is built makes those of
/// tests count.
const C_BUILD: [&str; 4] = ["--workspace", "--lib", "--test", "header"];

/// The folder that has the C library, shared and static.
pub fn c_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let library = BUILT.get_or_init(|| find_or_build("liblapis.so", &C_SOURCES, &C_BUILD));
    library.parent().expect("a file lies in a folder")
}

/// Runs it to its end: exit status, standard output, standard error.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn find_or_build(file: &str, sources: &[&str], package: &[&str]) -> PathBuf {
    let this = env::current_exe().expect("this test's own file");
    // TARGET/PROFILE/deps/process-HASH
    let folder = this.ancestors().nth(2).expect("a folder of the profile").to_owned();
    let binary = folder.join(file);
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_owned();
    let sources = sources.iter().filter_map(|name| newest(&workspace.join(name))).max();
    if modified(&binary).is_some_and(|built| sources.is_none_or(|newest| newest <= built)) {
        return binary;
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&workspace).arg("build").args(package).arg("--target-dir");
    cargo.arg(folder.parent().expect("the profile's folder lies in the target folder"));
    if folder.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    forget_the_package(&mut cargo);
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "{cargo:?} ended with {status}");
    binary
}

/// What Cargo says to a test of its package: build scripts that look at it (ring's does) would run again, and all that stands
/// on them would be compiled again, here and in the next `cargo test`.
fn forget_the_package(cargo: &mut Command) {
    const OF_THE_PACKAGE: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_", "CARGO_PRIMARY_PACKAGE"];
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| OF_THE_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
}

/// When the newest file in it was changed. What builds leave behind is no source.
fn newest(path: &Path) -> Option<SystemTime> {
    let own = fs::metadata(path).ok().filter(|_| path.file_name().is_none_or(|name| name != "target"))?;
    if !own.is_dir() {
        let counts = path.extension().is_some_and(|extension| extension == "rs" || extension == "toml");
        return own.modified().ok().filter(|_| counts);
    }
    fs::read_dir(path).ok()?.filter_map(|entry| newest(&entry.ok()?.path())).max()
}
