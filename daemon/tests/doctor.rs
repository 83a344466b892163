//! `lapis doctor` as a person runs it: a line a check, a document for programs, and the exit status.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// A doctor for a daemon whose files are in `folder`, told of nothing else.
fn doctor(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LAPIS_")) {
        command.env_remove(name);
    }
    let file = folder.join("lapis.toml");
    let text = format!(
        "[dram]\nbytes = \"64MiB\"\n[server]\nsocket = \"{0}/lapis.sock\"\n[metrics]\nlisten = \"off\"\n\
         [ssd]\npaths = [\"{0}/log\"]\nbytes = \"512MiB\"\nrequired = false\n",
        folder.display()
    );
    fs::write(&file, text).expect("a configuration");
    command.arg("doctor").arg(&file).args(arguments).stdin(Stdio::null());
    command.output().expect("the binary runs")
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_host_that_will_do_is_told_line_by_line_and_nothing_is_left_on_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = doctor(folder.path(), &[]);
    let lines = lines(&output);
    assert!(output.status.success(), "{lines:?} {}", String::from_utf8_lossy(&output.stderr));
    for check in ["memory", "huge pages", "memlock", "open files", "io_uring", "machine-id", "ssd", "socket", "keeper"]
    {
        let of_check = |line: &&String| line.get(6..).is_some_and(|rest| rest.starts_with(check));
        assert!(lines.iter().any(|line| of_check(&line)), "nothing on {check} in {lines:?}");
    }
    assert!(lines.iter().all(|line| line.starts_with("ok    ") || line.starts_with("warn  ")), "{lines:?}");
    let left: Vec<_> = fs::read_dir(folder.path()).expect("the folder").flatten().map(|f| f.file_name()).collect();
    assert_eq!(left, ["lapis.toml"]);
}

#[test]
fn a_host_that_will_not_do_fails_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hold, missing) = (folder.path().join("hold.sock"), folder.path().join("no/log"));
    let (hold, missing) = (hold.display().to_string(), missing.display().to_string());
    let output = doctor(folder.path(), &["--hold", &hold, "--ssd-paths", &missing, "--ssd-required"]);
    let said = lines(&output);
    assert_eq!(output.status.code(), Some(1), "{said:?}");
    let failed = |words: &str| said.iter().any(|line| line.starts_with("fail  ") && line.contains(words));
    assert!(failed(&format!("start it first: lapis hold {hold}")), "{said:?}");
    assert!(failed("make its folder"), "{said:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.lines().count() == 1 && errors.contains("checks failed"), "{errors}");
}

#[test]
fn programs_get_one_document_with_the_same_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("no/log").display().to_string();
    for (arguments, succeeds) in
        [(&["--json"][..], true), (&["--json", "--ssd-required", "--ssd-paths", &missing], false)]
    {
        let output = doctor(folder.path(), arguments);
        assert_eq!(output.status.success(), succeeds);
        let report: Value = serde_json::from_slice(&output.stdout).expect("one document");
        assert_eq!(report["level"] == "fail", !succeeds, "{report}");
        let checks = report["checks"].as_array().expect("a list");
        for check in checks {
            assert!(check["check"].is_string() && check["found"].is_string(), "{check}");
            assert_eq!(check["advice"].is_string(), check["level"] != "ok", "{check}");
        }
    }
}

#[test]
fn a_broken_configuration_is_said_and_nothing_is_examined() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = doctor(folder.path(), &["--ssd-paths", "relative"]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--ssd-paths: ssd.paths:"));
}
