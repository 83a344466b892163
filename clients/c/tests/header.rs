//! The header is the code's: made anew and compared.

use std::{fs, path::Path};

const RENEW: &str = "LAPIS_RENEW_HEADER";

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn made() -> String {
    let config = cbindgen::Config::from_file(crate_folder().join("cbindgen.toml")).expect("cbindgen.toml is sound");
    // Of this crate's sources alone: what they use of others has no place in the header.
    let bindings = cbindgen::Builder::new().with_config(config).with_src(crate_folder().join("src/lib.rs")).generate();
    let mut text = Vec::new();
    bindings.expect("cbindgen understands the sources").write(&mut text);
    String::from_utf8(text).expect("a header is text")
}

#[test]
fn the_header_says_what_the_code_has() {
    let (path, made) = (crate_folder().join("include/lapis.h"), made());
    if std::env::var_os(RENEW).is_some() {
        fs::write(&path, &made).expect("the header can be written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    if let Some((at, (kept, made))) = kept.lines().zip(made.lines()).enumerate().find(|(_, (kept, made))| kept != made)
    {
        panic!(
            "include/lapis.h:{}: {kept:?}\nof the code:  {made:?}\nrenew it: {RENEW}=1 cargo test -p lapis-client-c --test header",
            at + 1
        );
    }
    assert_eq!(kept.len(), made.len(), "include/lapis.h ends elsewhere; {RENEW}=1 cargo test renews it");
}

/// Name and first word of the body of every function that C can call, out of the sources.
fn functions() -> Vec<(String, String)> {
    let sources = fs::read_dir(crate_folder().join("src")).expect("this crate's sources");
    let mut functions = Vec::new();
    for source in sources {
        let text = fs::read_to_string(source.expect("a file").path()).expect("a source");
        for function in text.split("extern \"C\" fn ").skip(1) {
            // A signature has no brace; what follows the first is the body.
            let Some((signature, body)) = function.split_once('{') else { continue };
            let Some((name, _)) = signature.split_once('(') else { continue };
            functions.push((name.to_owned(), body.trim_start().to_owned()));
        }
    }
    functions
}

#[test]
fn every_function_runs_within_the_guard() {
    for (name, body) in functions() {
        assert!(body.starts_with("guard::status(") || body.starts_with("guard::value("), "{name}: a panic leaves it");
    }
}

#[test]
fn every_function_is_in_the_header() {
    let (header, functions) = (made(), functions());
    assert!(functions.len() > 40, "the sources are not read any more: {functions:?}");
    for (name, _) in functions {
        assert!(header.contains(&format!("{name}(")), "{name} is missing");
    }
}
