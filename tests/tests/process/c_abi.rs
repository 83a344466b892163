//! The C client as its users have it: installed by its script, compiled against by the system's compiler, beside a real
//! daemon. The programs are in `c_abi/`; each checks itself and says where it failed.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lapis_benches::host::{Host, HostOptions};
use tempfile::TempDir;

use super::{
    alone, binary,
    gpus::{Bed, registered},
    machine::{MIB, at, host, nothing_held, status_when},
};

const DRAM: u64 = 64 * MIB;

/// An installed library, and a folder for what is compiled against it.
struct Installed {
    prefix: TempDir,
}

impl Installed {
    fn new() -> Self {
        let prefix = tempfile::Builder::new().prefix("lapis-c-").tempdir().expect("a folder");
        let script = workspace().join("clients/c/install.sh");
        let (code, said, errors) = binary::run(Command::new(script).arg(prefix.path()).arg(binary::c_library()));
        assert_eq!(code, Some(0), "{said}{errors}");
        let run = prefix.path().join("run");
        fs::create_dir(&run).expect("a folder");
        symlink(prefix.path().join("lib/liblapis.so.0"), run.join("liblapis.so.0")).expect("a link");
        Self { prefix }
    }

    fn folder(&self) -> &Path {
        self.prefix.path()
    }

    /// What a user's build asks pkg-config for.
    fn flags(&self, what: &str, link: Link) -> Vec<String> {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", self.folder().join("lib/pkgconfig")).args([what, "lapis"]);
        if link == Link::Static {
            pkg_config.arg("--static");
        }
        let text = match pkg_config.output() {
            Ok(_) => {
                let (code, said, errors) = binary::run(&mut pkg_config);
                assert_eq!(code, Some(0), "{errors}");
                said
            }
            Err(error) => {
                eprintln!("pkg-config is not here ({error}): the test reads lapis.pc itself");
                self.flags_by_hand(what)
            }
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn flags_by_hand(&self, what: &str) -> String {
        let file = fs::read_to_string(self.folder().join("lib/pkgconfig/lapis.pc")).expect("the installed file");
        let kinds: &[&str] = if what == "--cflags" { &["Cflags: "] } else { &["Libs: ", "Libs.private: "] };
        let lines = file.lines().filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)));
        let prefix = self.folder().to_str().expect("a plain path");
        lines
            .map(|line| line.replace("${libdir}", &format!("{prefix}/lib")) + " ")
            .collect::<String>()
            .replace("${includedir}", &format!("{prefix}/include"))
    }

    /// Compiles a program, every warning an error.
    fn compile(&self, compiler: &str, arguments: &[&str], source: &Path, link: Link) -> PathBuf {
        let name = format!("{}-{compiler}-{link:?}", source.file_stem().expect("a source").display());
        let program = self.folder().join(name);
        let mut command = Command::new(compiler);
        command.args(["-Wall", "-Wextra", "-Werror"]).args(arguments).args(self.flags("--cflags", link));
        command.arg(source).args(["-x", "none"]);
        let archive = self.folder().join("lib/liblapis.a").display().to_string();
        let libraries = if link == Link::Not { vec!["-ldl".to_owned()] } else { self.flags("--libs", link) };
        for flag in libraries {
            // The linker prefers the shared one by that name.
            command.arg(if flag == "-llapis" && link == Link::Static { &archive } else { &flag });
        }
        let status = command.arg("-o").arg(&program).status().unwrap_or_else(|error| panic!("{compiler}: {error}"));
        assert!(status.success(), "{command:?} ended with {status}");
        program
    }

    /// Compiles a program of these tests, as C11.
    fn compile_test(&self, name: &str, link: Link) -> PathBuf {
        let source = workspace().join("tests/tests/process/c_abi").join(name).with_extension("c");
        self.compile("cc", &["-std=c11"], &source, link)
    }

    /// Runs a program to its end; what it said.
    fn run(&self, program: &Path, host: &Host) -> String {
        let (code, said, errors) = binary::run(self.command(program).arg(host.socket()));
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{}: {said}", program.display());
        said
    }

    /// A command that runs a program as one finds it later: with the shared library under its number alone.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.folder().join("run"));
        command
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    Shared,
    Static,
    Not,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace")
}

#[test]
fn the_example_is_c_and_cpp_links_both_ways_and_prints_what_it_found() {
    let _alone = alone();
    let (host, installed) = (host(DRAM), Installed::new());
    let source = workspace().join("clients/c/examples/hello.c");
    let shared = installed.compile("cc", &["-std=c11", "-pedantic"], &source, Link::Shared);
    let found = "match_prefix: 2 of 2\nget_into: 2 hits, the same bytes\n\
                 view: 65536 bytes, the first is 1, still valid\n";
    let first = format!("put: block 0: stored\nput: block 1: stored\n{found}");
    assert_eq!(installed.run(&shared, &host), first);

    let again = format!("put: block 0: exists\nput: block 1: exists\n{found}");
    let fixed = installed.compile("cc", &["-std=c11"], &source, Link::Static);
    assert_eq!(installed.run(&fixed, &host), again);
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("c++ is not here: the example is not compiled as C++");
        return;
    }
    let cpp = installed.compile("c++", &["-std=c++17", "-pedantic", "-x", "c++"], &source, Link::Shared);
    assert_eq!(installed.run(&cpp, &host), again);
}

#[test]
fn every_call_does_what_the_header_says() {
    let _alone = alone();
    let (host, installed) = (host(DRAM), Installed::new());
    assert_eq!(installed.run(&installed.compile_test("calls", Link::Shared), &host), "all calls\n");
    nothing_held(&host);
}

#[test]
fn a_mistake_in_a_call_is_answered_with_a_code_and_named() {
    let _alone = alone();
    let (host, installed) = (host(DRAM), Installed::new());
    assert_eq!(installed.run(&installed.compile_test("mistakes", Link::Shared), &host), "all mistakes\n");
    nothing_held(&host);
}

#[test]
fn a_program_lives_on_without_its_daemon_and_with_another_one() {
    let _alone = alone();
    let options =
        HostOptions { binary: binary::lapis(), dram_bytes: DRAM, ssd_bytes: None, hold: false, flags: vec![] };
    let (mut host, installed) = (Host::start(options).expect("a host"), Installed::new());
    status_when(&host.socket(), "the daemon", |_| true);
    let mut command = installed.command(&installed.compile_test("outage", Link::Shared));
    command.arg(host.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let (mut to, from) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let mut words = BufReader::new(from).lines();
    let mut next = || words.next().map(|word| word.expect("text"));
    assert_eq!(next().as_deref(), Some("put"));
    host.kill_daemon().expect("it can be killed");
    to.write_all(b"killed\n").expect("it listens");
    assert_eq!(next().as_deref(), Some("alone"));
    host.start_daemon().expect("another daemon");
    to.write_all(b"started\n").expect("it listens");
    assert_eq!(next().as_deref(), Some("back"));
    let status = child.wait().expect("our child");
    assert!(status.success(), "{status}");
}

#[test]
fn blocks_go_to_and_from_gpus_and_a_host_without_a_driver_is_told_so() {
    let _alone = alone();
    let (bed, installed) = (Bed::new(&[("DEVICES", "2")]), Installed::new());
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let program = installed.compile_test("devices", Link::Shared);
    let mut command = installed.command(&program);
    command.env("LAPIS_CUDA_DEVICES", "2").env("LAPIS_CUDA_MISUSES", bed.misuses());
    command.arg(host.socket()).arg(binary::cuda_stand_in());
    assert_eq!(binary::run(&mut command), (Some(0), "all on GPUs\n".to_owned(), String::new()));
    // They went to the GPU's own slots, but for the one that was there.
    status_when(&host.socket(), "blocks that were put on a GPU", |status| at(status, "/hbm/puts") == 5);
    let said = installed.run(&program, &host);
    if said != "no driver\n" {
        eprintln!("{said}: what a host without one is told is not looked at");
    }
    host.stop_daemon().expect("it ends");
}

#[test]
fn the_library_needs_no_driver_to_be_loaded() {
    let library = fs::read(binary::c_library().join("liblapis.so")).expect("a library");
    let names = |name: &[u8]| library.windows(name.len()).any(|part| part == name);
    // What it needs is named in its table of strings, each name between zeros.
    assert!(names(b"\0libc.so.6\0") && !names(b"\0libcuda.so.1\0") && !names(b"\0libcuda.so\0"));
}

/// A client's threads run its code: it must not go with a plugin that loaded it.
#[test]
fn the_library_stays_when_who_loaded_it_lets_it_go() {
    let installed = Installed::new();
    let program = installed.compile_test("unloaded", Link::Not);
    assert_eq!(binary::run(&mut installed.command(&program)), (Some(0), "stays\n".to_owned(), String::new()));
}
