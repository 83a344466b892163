//! The library: found, named, old, not there.

use std::{fs, io::Write, path::Path};

use lapis_arena::hbm::{Cuda, NoCuda, is_present};
use tempfile::NamedTempFile;

use super::harness::{Scenario, WORD, cuda, library, open, stand_in, word};

/// The stand-in without some of its functions, as an old driver.
pub fn without(functions: &[&str]) -> NamedTempFile {
    let mut bytes = fs::read(stand_in()).expect("the stand-in");
    for function in functions {
        // The end of it too: some are the start of others.
        let name = [function.as_bytes(), b"\0"].concat();
        let places: Vec<_> = (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(&name)).collect();
        assert!(!places.is_empty(), "{function} is not in the stand-in");
        for at in places {
            bytes[at..at + 2].copy_from_slice(b"xx");
        }
    }
    let mut file = tempfile::Builder::new().suffix(".so").tempfile().expect("a file");
    file.write_all(&bytes).expect("written");
    file
}

#[test]
#[ignore = "in a process of its own"]
fn none() {
    let Some(path) = library() else { return };
    assert!(!is_present(None));
    let error = Cuda::load(None).expect_err("no driver");
    let said = error.to_string();
    assert!(matches!(error, NoCuda::Library { .. }), "{said}");
    assert!(said.contains("install NVIDIA's driver") && said.contains("the option"), "{said}");
    let missing = Path::new("/nowhere/libcuda.so");
    let said = Cuda::load(Some(missing)).expect_err("no file").to_string();
    assert!(said.contains("/nowhere/libcuda.so") && said.contains("No such file"), "{said}");
    let other = Cuda::load(Some(Path::new("libc.so.6"))).expect_err("no driver");
    assert!(matches!(other, NoCuda::Function { function: "cuInit" }), "{other}");
    // A library that is the driver by its content alone is not the one that cudarc would take.
    // What failed can be tried again with what is right.
    assert!(is_present(Some(&path)));
    let other = Cuda::load(Some(missing)).expect_err("another is loaded").to_string();
    assert!(other.contains("cannot be loaded beside it"), "{other}");
    assert_eq!(Cuda::load(None).expect("loaded").version(), 12080);
}

#[test]
fn without_a_driver_the_error_says_what_to_do() {
    Scenario::new("loading::none").run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn found() {
    if library().is_none() {
        return;
    }
    let cuda = Cuda::load(None).expect("found by the loader");
    let devices = cuda.devices().expect("a list");
    assert_eq!(devices.len(), 3);
    assert_eq!(devices.iter().map(|device| device.bytes).collect::<Vec<_>>(), [1 << 20, 2 << 20, 2 << 20]);
    let mut uuids: Vec<_> = devices.iter().map(|device| device.uuid).collect();
    uuids.dedup();
    assert_eq!(uuids.len(), 3);
    assert_eq!((devices[1].name.as_str(), devices[1].pci_bus_id.as_str()), ("Lapis stand-in", "0000:41:00.0"));
    assert!(devices.iter().all(|device| device.has_descriptors));
}

#[test]
fn the_loader_finds_it_by_either_name() {
    for name in ["libcuda.so", "libcuda.so.1"] {
        let folder = tempfile::tempdir().expect("a folder");
        fs::copy(stand_in(), folder.path().join(name)).expect("copied");
        let scenario = Scenario::new("loading::found").with("LD_LIBRARY_PATH", folder.path());
        scenario.with("LAPIS_CUDA_DEVICES", "3").with("LAPIS_CUDA_BYTES", "1048576,2097152").run_clean();
    }
}

#[test]
#[ignore = "in a process of its own"]
fn linked() {
    let Some(cuda) = cuda() else { return };
    let link = |from, to| cuda.link(from, to).expect("both are there");
    assert_eq!((link(0, 0), link(1, 1)), (None, None), "itself");
    assert_eq!(link(0, 1), link(1, 0));
    let said = link(0, 1).map_or("none".to_owned(), |link| format!("{:?} {}", link.rank, link.has_atomics));
    assert_eq!(said, word());
    assert!(cuda.link(0, 2).is_err());
}

#[test]
fn a_driver_says_what_the_way_from_a_gpu_to_another_is_like_if_there_is_one() {
    let scenario = |said: &str| Scenario::new("loading::linked").with("LAPIS_CUDA_DEVICES", "2").with(WORD, said);
    scenario("Some(0) false").run_clean();
    scenario("Some(2) false").with("LAPIS_CUDA_LINK", "2").run_clean();
    scenario("Some(0) true").with("LAPIS_CUDA_LINK", "nvlink").run_clean();
    scenario("none").with("LAPIS_CUDA_WITHOUT", "peers").run_clean();
    let old = without(&["cuDeviceGetP2PAttribute"]);
    scenario("None false").library(old.path()).run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn no_device() {
    let Some(cuda) = cuda() else { return };
    assert_eq!(cuda.devices().expect("a list"), []);
    assert!(lapis_arena::hbm::Device::open(&cuda, 0).is_err());
}

#[test]
fn a_driver_without_a_device_has_an_empty_list() {
    Scenario::new("loading::no_device").with("LAPIS_CUDA_DEVICES", "0").run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn lacking() {
    let Some(path) = library() else { return };
    let error = Cuda::load(Some(&path)).expect_err("a function is missing").to_string();
    assert!(error.contains(&word()) && error.contains("newer driver"), "{error}");
}

#[test]
fn a_driver_that_lacks_what_is_needed_is_refused_with_its_name() {
    for function in ["cuInit", "cuEventQuery", "cuMemHostRegister_v2"] {
        let old = without(&[function]);
        Scenario::new("loading::lacking").library(old.path()).with(WORD, function).run_clean();
    }
}

#[test]
#[ignore = "in a process of its own"]
fn shadowed() {
    let Some(path) = library() else { return };
    let error = Cuda::load(Some(&path)).expect_err("another is found first");
    assert!(matches!(error, NoCuda::Shadowed { .. }), "{error}");
}

/// The file that was named is not the one that cudarc would call: the loader knows it by another name.
#[test]
fn a_library_that_is_found_before_the_named_one_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(stand_in(), folder.path().join("libcuda.so")).expect("copied");
    let mut bytes = fs::read(stand_in()).expect("the stand-in");
    let name = b"\0libcuda.so\0";
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            bytes[at + 1..at + 3].copy_from_slice(b"xx");
        }
    }
    let named = folder.path().join("named.so");
    fs::write(&named, bytes).expect("written");
    Scenario::new("loading::shadowed").library(&named).with("LD_LIBRARY_PATH", folder.path()).run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn once() {
    let Some(cuda) = cuda() else { return };
    let (one, two) = (open(&cuda, 0), open(&cuda, 0));
    drop(one);
    assert!(two.memory().is_ok(), "a device is open as long as somebody has it");
}

#[test]
fn a_device_may_be_opened_twice() {
    Scenario::new("loading::once").run_clean();
}
