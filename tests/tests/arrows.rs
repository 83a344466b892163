//! The floor plan, kept: who may import whom, where versions and lints are written.
//!
//! `config <- {tiering, arena, ssd, transport, clients/rust, daemon/membership} <- {clients/c, clients/python, benches,
//! daemon/state, daemon} <- tests`; `benches/trace <- benches`. The movers (`arena`, `ssd`, `transport`) know neither the core
//! nor, `arena` apart, each other; the core knows words alone.

use std::{collections::BTreeMap, fs, path::Path};

use toml::{Table, Value};

const CONFIG: &str = "lapis-config";
const TIERING: &str = "lapis-tiering";
const ARENA: &str = "lapis-arena";
const SSD: &str = "lapis-ssd";
const TRANSPORT: &str = "lapis-transport";
const CLIENT: &str = "lapis-client";
const CLIENT_C: &str = "lapis-client-c";
const PYTHON: &str = "lapis-python";
const TRACE: &str = "lapis-trace";
const BENCHES: &str = "lapis-benches";
const MEMBERSHIP: &str = "lapis-membership";
const STATE: &str = "lapis-state";
const DAEMON: &str = "lapis";
const TESTS: &str = "lapis-tests";
const STAND_IN: &str = "lapis-cuda-standin";

/// Every package of the workspace and all of ours that it may name, tests and build scripts included.
const ARROWS: &[(&str, &[&str])] = &[
    (CONFIG, &[]),
    (TIERING, &[CONFIG]),
    (ARENA, &[CONFIG]),
    (SSD, &[CONFIG, ARENA]),
    (TRANSPORT, &[CONFIG, ARENA]),
    (CLIENT, &[CONFIG, ARENA, TRANSPORT]),
    (CLIENT_C, &[CONFIG, TRANSPORT, CLIENT]),
    (PYTHON, &[CLIENT]),
    (TRACE, &[]),
    (BENCHES, &[CONFIG, TIERING, ARENA, SSD, TRANSPORT, CLIENT, TRACE]),
    (MEMBERSHIP, &[CONFIG]),
    (STATE, &[CONFIG, TIERING, ARENA]),
    (DAEMON, &[CONFIG, TIERING, ARENA, SSD, TRANSPORT, CLIENT, BENCHES, MEMBERSHIP, STATE]),
    (TESTS, &[CONFIG, TIERING, ARENA, SSD, TRANSPORT, CLIENT, TRACE, BENCHES, MEMBERSHIP, STATE, DAEMON]),
    // Its tests call it as the arena does.
    (STAND_IN, &[CONFIG, ARENA]),
];

/// What is wrong with one package's manifest, a line each.
fn mistakes(manifest: &str) -> Vec<String> {
    let manifest: Table = match manifest.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![error.to_string()],
    };
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str).unwrap_or("");
    let Some((_, may)) = ARROWS.iter().find(|(package, _)| *package == name) else {
        return vec![format!("{name:?} has no place in the floor plan")];
    };
    let mut mistakes = Vec::new();
    if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true)) {
        mistakes.push(format!("{name}: lints belong in [workspace.lints]; a package says `workspace = true`"));
    }
    for (import, how) in imports(&manifest) {
        let from_workspace = how.get("workspace") == Some(&Value::Boolean(true));
        if !from_workspace || ["version", "path", "git"].iter().any(|key| how.get(key).is_some()) {
            mistakes.push(format!("{name}: the version of {import} belongs in [workspace.dependencies]"));
        }
        let ours = import == DAEMON || import.starts_with("lapis-");
        if ours && !may.contains(&import) {
            mistakes.push(format!("{name} must not import {import}; it may import {may:?}"));
        }
    }
    mistakes
}

/// Dependencies of every kind, those of single targets too.
fn imports(manifest: &Table) -> impl Iterator<Item = (&str, &Value)> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let places = targets.filter_map(Value::as_table).chain([manifest]);
    places
        .flat_map(|place| KINDS.into_iter().filter_map(|kind| place.get(kind)?.as_table()))
        .flat_map(|kind| kind.iter().map(|(name, how)| (real_name(name, how), how)))
}

/// A renamed dependency is still the package that it is.
fn real_name<'a>(name: &'a str, how: &'a Value) -> &'a str {
    how.get("package").and_then(Value::as_str).unwrap_or(name)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace around this package")
}

/// Path and text of every member's manifest.
fn manifests() -> BTreeMap<String, String> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let workspace: Table = read(&root().join("Cargo.toml")).parse().expect("the workspace's manifest is TOML");
    let members = workspace["workspace"]["members"].as_array().expect("a list of members");
    let members = members.iter().map(|member| member.as_str().expect("members are paths").to_owned());
    members.map(|member| (member.clone(), read(&root().join(&member).join("Cargo.toml")))).collect()
}

#[test]
fn every_package_imports_only_what_the_floor_plan_lets_it() {
    let manifests = manifests();
    let mistakes: Vec<String> = manifests.values().flat_map(|manifest| mistakes(manifest)).collect();
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    assert_eq!(manifests.len(), ARROWS.len(), "a package of the floor plan is missing");
}

#[test]
fn a_broken_arrow_is_seen_wherever_it_is_written() {
    let plain = "[package]\nname = 'lapis-tiering'\n[lints]\nworkspace = true\n";
    assert_eq!(mistakes(plain), Vec::<String>::new());
    let arena = "lapis-arena = { workspace = true }";
    let broken = [
        format!("[dependencies]\n{arena}"),
        format!("[dev-dependencies]\n{arena}"),
        format!("[build-dependencies]\n{arena}"),
        format!("[target.'cfg(unix)'.dependencies]\n{arena}"),
        "[dependencies]\nmemory = { workspace = true, package = 'lapis-arena' }".to_owned(),
    ];
    for broken in broken {
        let found = mistakes(&format!("{plain}{broken}\n"));
        assert!(found.len() == 1 && found[0].contains("must not import lapis-arena"), "{broken}: {found:?}");
    }
}

#[test]
fn a_version_or_a_lint_of_a_packages_own_is_seen() {
    let head = "[package]\nname = 'lapis-ssd'\n";
    assert!(mistakes(head)[0].contains("lints"));
    assert!(mistakes(&format!("{head}[lints.rust]\nunused = 'allow'\n"))[0].contains("lints"));
    for how in ["'1'", "{ version = '1' }", "{ path = '../libc' }", "{ workspace = true, version = '1' }"] {
        let found = mistakes(&format!("{head}[lints]\nworkspace = true\n[dependencies]\nlibc = {how}\n"));
        assert!(found.len() == 1 && found[0].contains("libc"), "{how}: {found:?}");
    }
}

#[test]
fn a_package_outside_of_the_plan_is_seen() {
    assert!(mistakes("[package]\nname = 'lapis-utils'\n")[0].contains("floor plan"));
}

/// A reader relies on it: where no memory is touched by hand, no call to the kernel can hide.
#[test]
fn the_core_forbids_unsafe_code() {
    let core = fs::read_to_string(root().join("tiering/src/lib.rs")).expect("the core's source");
    assert!(core.contains("#![forbid(unsafe_code)]"));
}
