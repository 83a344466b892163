//! `lapis demo --gpus` on a small trace, over the stand-in driver, and where no driver is.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{alone, binary};

/// Exit status, standard output and standard error; its files lie in `folder`.
fn demo(folder: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binary::lapis());
    command.arg("demo").args(words).stdin(Stdio::null());
    // Cargo names its own folders there, and a driver would be found in them.
    command.env_remove("LD_LIBRARY_PATH").env("TMPDIR", folder);
    binary::run(&mut command)
}

/// The numbers of a row of the table.
fn row(said: &str, name: &str) -> Vec<u64> {
    let row = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name:?} in {said}"));
    row.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_demo_finds_blocks_in_every_tier_and_no_wrong_byte() {
    let _alone = alone();
    let (folder, library) = (tempfile::tempdir().expect("a folder"), binary::cuda_stand_in().display().to_string());
    let small = ["--requests", "150", "--dram", "16MiB", "--hbm", "4MiB", "--ssd", "512MiB", "--block-bytes", "16KiB"];
    let (status, said, told) =
        demo(folder.path(), &[&["--gpus", "2", "--cuda-library", library.as_str()][..], &small].concat());
    assert_eq!((status, said.lines().last()), (Some(0), Some("wrong bytes: 0")), "{said}{told}");
    for half in ["first half", "second half"] {
        let [asked, hits, own, _, dram, ..] = row(&said, half)[..] else { panic!("{said}") };
        assert!(asked > hits && own > 0 && dram > 0, "{half}: {said}");
    }
    // Asked, hits, then in the reader's own HBM, on another GPU, in DRAM, on SSD.
    let [read, hits, .., ssd, _, _] = row(&said, "from SSD, first read")[..] else { panic!("{said}") };
    assert!(read > 0 && hits == read && ssd > 0, "{said}");
    let [_, _, own, ..] = row(&said, "third read")[..] else { panic!("{said}") };
    assert!(own > 0, "{said}");
    let [before, _, same, _] = row(&said, "the daemon killed")[..] else { panic!("{said}") };
    assert!(before > 0 && same > 0, "{said}");
    assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "it cleans up");
}

#[test]
fn without_a_driver_the_demo_says_so_and_what_to_build() {
    if Path::new("/dev/nvidiactl").exists() {
        return eprintln!("skipped: a driver is here");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (status, said, told) = demo(folder.path(), &["--gpus", "2"]);
    assert_eq!((status, said.as_str(), told.lines().count()), (Some(1), "", 1), "{told}");
    for words in [
        "lapis: no GPU can be used: the CUDA driver's library is not to be had (",
        "install NVIDIA's driver (libcuda.so.1)",
        "Without a GPU, build the stand-in (cargo build --release -p lapis-cuda-standin)",
        "--cuda-library target/release/libcuda.so",
    ] {
        assert!(told.contains(words), "{words:?} not in {told}");
    }
    let (status, said, told) = demo(folder.path(), &["--gpus", "2", "--cuda-library", "/nowhere/libcuda.so"]);
    assert_eq!((status, said.as_str()), (Some(1), ""), "{told}");
    assert!(told.contains("/nowhere/libcuda.so, named as the CUDA library, cannot be loaded"), "{told}");
}
