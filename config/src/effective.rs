//! The configuration as text: what is in force and why, and the example file.

use std::fmt::Write;

use crate::load::{Effective, group_key};
use crate::mistake::Source;
use crate::options::{Definition, Group, Options, SSD_SEGMENT_BYTES_MIN};
use crate::quantity::Bytes;
use crate::tables::Tables;

impl Effective {
    /// Every value with its source, then the bytes of each table; `control_bytes` is the memory of one client's
    /// rings and hazard page.
    pub fn render(&self, control_bytes: u64) -> String {
        let mut rows: Vec<[String; 3]> = Options::DEFINITIONS.iter().map(|d| self.row(d)).collect();
        for (i, group) in self.options.groups.iter().enumerate() {
            rows.extend(Group::DEFINITIONS.iter().map(|d| self.group_row(i, group, d)));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).min(40);
        let (names, values) = (width(0), width(1));
        let mut out = String::new();
        for [name, value, source] in &rows {
            let _ = writeln!(out, "{name:names$}  {value:values$}  {source}");
        }
        out.push('\n');
        for group in &self.options.groups {
            out.push_str(&self.tables(group, control_bytes));
        }
        if !self.options.ssd_paths.is_empty() {
            out.push_str(&self.ssd());
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }

    /// Where the value of the option called `name` came from.
    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).cloned().unwrap_or_default()
    }

    fn row(&self, definition: &Definition) -> [String; 3] {
        let value = quoted(definition, &self.options.show(definition.name));
        let source = self.source(definition.name);
        let source = with_auto(&source, definition, &value);
        [definition.name.into(), value, source]
    }

    fn group_row(&self, i: usize, group: &Group, definition: &Definition) -> [String; 3] {
        let name = group_key(i, definition.name);
        let source = self.source(&name);
        let value = quoted(definition, &group.show(definition.name));
        let source = with_auto(&source, definition, &value);
        [name, value, source]
    }

    fn tables(&self, group: &Group, control_bytes: u64) -> String {
        let tables = Tables::of(&self.options, group, control_bytes);
        let clients = self.options.server_clients_max;
        let rows = [
            ("block table", tables.table_bytes, format!("{} lines of 64 B and a page", tables.lines)),
            ("entries", tables.entries_bytes, "32 B a line".into()),
            ("slot states", tables.slots_bytes, "8 B for each 4 KiB at most, touched as slots are made".into()),
            ("client rings", tables.controls_bytes, format!("with all {clients} clients connected")),
        ];
        sizes(&format!("tables of group {}", group.name), &rows)
    }

    /// Of block devices nothing is known here; they are used whole.
    fn ssd(&self) -> String {
        let options = &self.options;
        let (paths, each) = (options.ssd_paths.len(), options.ssd_bytes);
        let segments = each / SSD_SEGMENT_BYTES_MIN * paths as u64;
        let rows = [
            ("log", options.ssd_bytes_of_files(), format!("{paths} paths, {} each that is a file", Bytes(each))),
            ("segment", SSD_SEGMENT_BYTES_MIN, format!("at least; {segments} segments at most")),
        ];
        sizes("SSD tier, if its paths are files", &rows)
    }
}

/// Says so where a number stands for the word "auto".
fn with_auto(source: &Source, definition: &Definition, value: &str) -> String {
    match source {
        Source::Default if definition.default == "auto" && value != "\"auto\"" => "default (auto)".into(),
        source => source.to_string(),
    }
}

fn quoted(definition: &Definition, value: &str) -> String {
    if definition.unit.quoted() || ["auto", "all"].contains(&value) { format!("{value:?}") } else { value.into() }
}

/// A heading, then names with bytes and what they are.
fn sizes(heading: &str, rows: &[(&str, u64, String)]) -> String {
    let mut out = format!("{heading}:\n");
    for (name, bytes, what) in rows {
        let _ = writeln!(out, "  {name:12}  {:>12}  {what}", approximate(*bytes));
    }
    out
}

/// To a tenth of a binary unit.
fn approximate(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => Bytes(bytes).to_string(),
    }
}

/// The example file: every option with its help, its bounds, its default, commented out.
pub fn example() -> String {
    let mut out = String::from(
        "# Configuration of Lapis. Every option is shown with its default. Each can also be given as a flag\n\
         # (dram.bytes: --dram-bytes 8GiB) or as a variable (LAPIS_DRAM_BYTES=8GiB); a flag beats a variable, a\n\
         # variable beats this file. Sizes and durations need a unit. Check with: lapis check-config FILE\n",
    );
    let mut table = "";
    for definition in Options::DEFINITIONS {
        let (of, key) = definition.name.split_once('.').unwrap_or(("", definition.name));
        if of != table {
            let _ = write!(out, "\n[{of}]");
            table = of;
        }
        out.push('\n');
        describe(&mut out, definition, key);
    }
    out.push_str(
        "\n# Trust groups: clients that trust each other's code and share blocks; nothing is shared between groups.\n\
         # Without any, there is one group \"default\" on server.socket that may have all of the memory. Name and\n\
         # socket are required. One [[group]] each:\n#[[group]]\n",
    );
    for definition in Group::DEFINITIONS {
        let (_, key) = definition.name.split_once('.').expect("options of a group are called group.something");
        describe(&mut out, definition, key);
    }
    out
}

fn describe(out: &mut String, definition: &Definition, key: &str) {
    for line in wrapped(&format!("{} ({})", definition.help, definition.unit.bounds()), 110) {
        let _ = writeln!(out, "# {line}");
    }
    let _ = writeln!(out, "#{key} = {}", quoted(definition, definition.default));
}

/// Lines of at most `width` bytes, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.into());
        }
    }
    lines
}
