//! The text of a configuration file, and the same text as the value of every flag.

use lapis_config::{ConfigErrors, ConfigFile, Effective, LoadInput, Options, example};

const CONTROL_BYTES: u64 = 1 << 20;

pub fn file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let file = Some(ConfigFile::Text("f".into(), text.to_string()));
    judge(Options::load(&LoadInput { file, ..LoadInput::default() }));
    // What is no option's value as a file may be one as a flag.
    if text.len() < 100 {
        let flags = Options::DEFINITIONS.iter().map(|definition| (definition.name, text.to_string())).collect();
        judge(Options::load(&LoadInput { flags, ..LoadInput::default() }));
    }
}

/// What is accepted can be shown; what is not is said, a line each.
fn judge(result: Result<Effective, ConfigErrors>) {
    match result {
        Ok(effective) => {
            assert!(!effective.options.groups.is_empty() && effective.options.dram_bytes >= 16 << 20);
            assert!(effective.render(CONTROL_BYTES).lines().count() > Options::DEFINITIONS.len());
        }
        Err(errors) => assert_eq!(errors.to_string().lines().count(), errors.0.len(), "{errors}"),
    }
}

pub fn files() -> Vec<Vec<u8>> {
    let given: String = example().lines().map(|line| option_of(line).to_owned() + "\n").collect();
    let group = "[[group]]\nname = \"b\"\nsocket = \"/s/b\"\nuids = [1, 2]\ndram_floor = \"1GiB\"\nmay_put = false\n";
    let words = ["64GiB", "1.5 s", "50ms", "auto", "off", "true", "0660", "[/a,/b]", "127.0.0.1:7850", "lru", "12"];
    let mut files: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    files.extend(given.split("\n\n[").map(|table| format!("[{table}").into_bytes()));
    files.push(b"\"a\\nb\" = 1\n[\"c\\rd\"]\nx = 2\n[[group]]\n\"e\\nf\" = 3\n".to_vec());
    files.push(b"64\n\nGiB".to_vec());
    files.push(b"99999999999999999999\n\nGB".to_vec());
    files.push(group.into());
    files.push(format!("{group}{}", group.replace("\"b\"", "\"c\"").replace("/s/b", "/s/c")).into_bytes());
    files
}

/// Without the sign before an option; comments with a space are prose.
fn option_of(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(_) if line.starts_with("# ") => "",
        Some(option) => option,
        None => line,
    }
}
