//! `docs/integrations.md` says of each system what ran, and names a test that exists: or it says "not yet".

use std::{fs, path::Path};

/// Every system that has to have a row.
const SYSTEMS: &[&str] = &[
    "vLLM",
    "vLLM-Omni",
    "vLLM-Ascend",
    "SGLang HiCache",
    "SGLang PD",
    "SGLang EPD",
    "LMCache",
    "LMDeploy",
    "TensorRT-LLM",
    "NIXL",
    "FlexKV",
    "xLLM",
    "LightX2V",
    "TorchSpec",
    "checkpoint-engine/P2P store",
    "ROLL",
    "RBG/Kubernetes",
    "Conductor",
];
const RAN: [&str; 3] = ["real", "stand-in", "not yet"];

/// What is wrong with the table, a line each. `exists`: whether there is a test of that name.
fn mistakes(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut mistakes = Vec::new();
    for system in SYSTEMS {
        if !rows.iter().any(|row| row[0] == *system) {
            mistakes.push(format!("{system}: no row"));
        }
    }
    for row in &rows {
        let [system, _, ran, test] = row[..] else {
            mistakes.push(format!("{row:?}: four columns are wanted"));
            continue;
        };
        let Some(kind) = RAN.iter().find(|kind| ran.starts_with(**kind)) else {
            mistakes.push(format!("{system}: {ran:?} begins with none of {RAN:?}"));
            continue;
        };
        let name = test.trim_matches('`');
        match (*kind, name) {
            ("not yet", "-") => {}
            ("not yet", _) => mistakes.push(format!("{system}: not yet, and yet the test {name}")),
            (_, "-") => mistakes.push(format!("{system}: {kind}, by no test")),
            (_, name) if !exists(name) => mistakes.push(format!("{system}: there is no test {name}")),
            _ => {}
        }
    }
    mistakes
}

/// Whether a file of tests defines a function of that name.
fn is_defined(folder: &Path, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_defined(&path, name);
        }
        let is_source = path.extension().is_some_and(|kind| kind == "py" || kind == "rs" || kind == "c");
        is_source
            && fs::read_to_string(&path).is_ok_and(|text| {
                [format!("def {name}("), format!("fn {name}(")].iter().any(|definition| text.contains(definition))
            })
    })
}

#[test]
fn every_row_of_the_integrations_says_what_ran_and_by_which_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/integrations.md")).expect("the table");
    let exists = |name: &str| ["tests", "clients"].iter().any(|folder| is_defined(&root.join(folder), name));
    assert_eq!(mistakes(&text, exists), Vec::<String>::new());
}

#[test]
fn a_row_that_hides_what_did_not_run_is_a_mistake() {
    let rows: String = SYSTEMS.iter().skip(1).map(|system| format!("| {system} | s | not yet | - |\n")).collect();
    let said =
        |row: &str| mistakes(&format!("| a | b | c | d |\n|---|---|---|---|\n{rows}{row}\n"), |name| name == "test_it");
    assert!(said("| vLLM | s | real | `test_it` |").is_empty());
    assert_eq!(said("| vLLM | s | real | `test_that` |"), ["vLLM: there is no test test_that"]);
    assert_eq!(said("| vLLM | s | real | - |"), ["vLLM: real, by no test"]);
    assert_eq!(said("| vLLM | s | not yet | `test_it` |"), ["vLLM: not yet, and yet the test test_it"]);
    assert_eq!(said("| vLLM | s | soon | - |"), [format!("vLLM: \"soon\" begins with none of {RAN:?}")]);
    assert_eq!(said(""), ["vLLM: no row"]);
}
