//! From the text of a TOML file to values with their lines. Knows tables and `[[group]]`; knows no option. Pure.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{ConfigError, Mistake, Source};
use crate::units::Raw;

/// No configuration is longer, bytes; a wrong path may lead to anything.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Tables within tables deeper than this are nobody's option.
const DEPTH_MAX: usize = 8;

/// One value of the file: its name with its tables, dots between.
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) raw: Raw,
    pub(crate) source: Source,
}

/// One `[[group]]`: where it starts and what is in it, names as "group.socket".
pub(crate) struct GroupItems {
    pub(crate) source: Source,
    pub(crate) items: Vec<Item>,
}

#[derive(Default)]
pub(crate) struct FileItems {
    pub(crate) items: Vec<Item>,
    pub(crate) groups: Vec<GroupItems>,
}

/// The text of the file at `path`.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let wrong =
        |mistake| ConfigError { source: Source::File { path: path.into(), line: 0 }, key: String::new(), mistake };
    let unreadable = |e: std::io::Error| wrong(Mistake::Unreadable(e.to_string()));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(wrong(Mistake::FileTooLong { bytes, most: FILE_BYTES_MAX }));
    }
    let mut text = String::new();
    // A device or a pipe has no length: bounded here too.
    std::io::Read::read_to_string(&mut std::io::Read::take(file, FILE_BYTES_MAX), &mut text).map_err(unreadable)?;
    Ok(text)
}

/// All that the text says, and all that is not TOML in it.
pub(crate) fn parse(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> FileItems {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path: path.into(), text, found: FileItems::default(), errors };
    for error in &syntax {
        let source = reader.source(error.span().map_or(0, |span| span.start));
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        reader.errors.push(ConfigError { source, key: String::new(), mistake: Mistake::Syntax(message) });
    }
    let items = reader.table("", document.get_ref(), 0);
    reader.found.items = items;
    let Reader { mut found, errors, .. } = reader;
    // What the parser made of a line that is not TOML deserves no second error.
    found.items.retain(|item| !errors.iter().any(|error| error.source == item.source));
    found
}

struct Reader<'a> {
    path: PathBuf,
    text: &'a str,
    found: FileItems,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    fn source(&self, offset: usize) -> Source {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        Source::File { path: self.path.clone(), line: line as u32 }
    }

    /// The values of one table in the order of their lines, tables within it included.
    fn table(&mut self, prefix: &str, table: &DeTable<'_>, depth: usize) -> Vec<Item> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut items = Vec::new();
        for (key, value) in entries {
            let name = format!("{prefix}{}", key.get_ref());
            let source = self.source(key.span().start);
            match value.get_ref() {
                DeValue::Table(_) if name == "group" => self.errors.push(not_a_group(source, "a table")),
                DeValue::Table(inner) if depth < DEPTH_MAX => {
                    items.extend(self.table(&format!("{name}."), inner, depth + 1));
                }
                DeValue::Array(array) if name == "group" => self.groups(array),
                _ if name == "group" => self.errors.push(not_a_group(source, value.get_ref().type_str())),
                other => items.push(Item { name, raw: raw(other), source }),
            }
        }
        items
    }

    fn groups(&mut self, array: &[Spanned<DeValue<'_>>]) {
        for element in array {
            let source = self.source(element.span().start);
            match element.get_ref() {
                DeValue::Table(table) => {
                    let items = self.table("group.", table, 1);
                    self.found.groups.push(GroupItems { source, items });
                }
                other => self.errors.push(not_a_group(source, other.type_str())),
            }
        }
    }
}

fn not_a_group(source: Source, found: &str) -> ConfigError {
    let mistake = Mistake::WrongType { expected: "[[group]]", found: found.into() };
    ConfigError { source, key: "group".into(), mistake }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Raw::Integer(n),
            Err(_) => Raw::Other("number too large"),
        },
        DeValue::Boolean(b) => Raw::Boolean(*b),
        DeValue::Array(array) => Raw::List(array.iter().map(|v| raw(v.get_ref())).collect()),
        DeValue::Float(_) => Raw::Other("number with a decimal point"),
        DeValue::Datetime(_) => Raw::Other("date"),
        DeValue::Table(_) => Raw::Other("table"),
    }
}
