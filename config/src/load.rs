//! From file, variables and flags to one checked configuration, or to all that is wrong with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::check::check;
use crate::file::{self, FileItems, GroupItems, Item};
use crate::machine::Machine;
use crate::mistake::{ConfigError, ConfigErrors, Mistake, Source};
use crate::nearest::{nearest, nearest_option};
use crate::options::{Definition, Group, Options};
use crate::units::Raw;

/// Variables of ours that are no options: they are for tests, and for finding the file.
const OTHER_VARIABLES: &[&str] = &["LAPIS_CONFIG", "LAPIS_TRACES", "LAPIS_CONFORMANCE", "LAPIS_BLESS"];
/// What variables of the stand-in for the CUDA driver begin with.
const STAND_IN_PREFIX: &str = "LAPIS_CUDA_";

#[derive(Clone, Debug)]
pub enum ConfigFile {
    Path(PathBuf),
    /// Embedded or made up: a name to call it by, and its text.
    Text(PathBuf, String),
}

/// Everything that may say something about the options.
#[derive(Clone, Debug, Default)]
pub struct LoadInput {
    pub file: Option<ConfigFile>,
    /// All variables of the environment; those that do not start with `LAPIS_` are passed over.
    pub env: Vec<(String, String)>,
    /// Names of options and what their flags were given.
    pub flags: Vec<(&'static str, String)>,
    pub machine: Machine,
}

impl LoadInput {
    /// What this process was started with: `file`, its environment, `flags`, on this machine.
    pub fn here(file: Option<&Path>, flags: Vec<(&'static str, String)>) -> Self {
        let lossy = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Self {
            file: file.map(|path| ConfigFile::Path(path.into())),
            env: std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect(),
            flags,
            machine: Machine::here(),
        }
    }
}

/// A configuration that holds together, and where each value came from.
#[derive(Clone, Debug)]
pub struct Effective {
    pub options: Options,
    /// By option name; a name that is not here has its default. Groups: "group.socket" of the first is
    /// "group[0].socket".
    pub sources: BTreeMap<String, Source>,
    /// What was changed or left out, in sentences, for the log.
    pub notes: Vec<String>,
}

impl Options {
    /// Reads everything in `input` and checks it whole: default < file < variable < flag.
    pub fn load(input: &LoadInput) -> Result<Effective, ConfigErrors> {
        let mut loading = Loading::default();
        if let Some(file) = &input.file {
            loading.file(file);
        }
        loading.variables(&input.env);
        for (name, value) in &input.flags {
            loading.flag(name, value);
        }
        check(&mut loading, &input.machine);
        loading.finish()
    }
}

/// A configuration on its way.
#[derive(Default)]
pub(crate) struct Loading {
    pub(crate) options: Options,
    pub(crate) sources: BTreeMap<String, Source>,
    /// Options whose value could not be read; they hold a default that was not meant, so nothing is concluded from it.
    pub(crate) broken: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) errors: Vec<ConfigError>,
}

impl Loading {
    pub(crate) fn wrong(&mut self, source: Source, key: &str, mistake: Mistake) {
        self.errors.push(ConfigError { source, key: key.into(), mistake });
    }

    pub(crate) fn source(&self, name: &str) -> Source {
        self.sources.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn is_broken(&self, name: &str) -> bool {
        self.broken.iter().any(|broken| broken == name)
    }

    fn file(&mut self, file: &ConfigFile) {
        let (path, text) = match file {
            ConfigFile::Path(path) => match file::read(path) {
                Ok(text) => (path, text),
                Err(error) => return self.errors.push(error),
            },
            ConfigFile::Text(path, text) => (path, text.clone()),
        };
        let FileItems { items, groups } = file::parse(path, &text, &mut self.errors);
        for item in items {
            self.item(item);
        }
        for (i, group) in groups.into_iter().enumerate() {
            self.group(i, group);
        }
    }

    fn item(&mut self, Item { name, raw, source }: Item) {
        if find(Options::DEFINITIONS, &name).is_some() {
            return self.set(&name, &raw, source);
        }
        let names = Options::DEFINITIONS.iter().map(|d| d.name);
        let nearest = nearest_option(&name, names).map(String::from);
        self.wrong(source, &name, Mistake::UnknownKey { nearest });
    }

    fn group(&mut self, i: usize, GroupItems { source, items }: GroupItems) {
        let mut group = Group::default();
        let mut given = Vec::new();
        for Item { name, raw, source } in items {
            let place = group_key(i, &name);
            if find(Group::DEFINITIONS, &name).is_none() {
                let names = Group::DEFINITIONS.iter().map(|d| d.name);
                let nearest = nearest_option(&name, names).map(String::from);
                self.wrong(source, &name, Mistake::UnknownKey { nearest });
                continue;
            }
            if let Err(mistake) = group.set(&name, &raw) {
                self.wrong(source.clone(), &name, mistake);
                self.broken.push(place.clone());
            }
            given.push(name);
            self.sources.insert(place, source);
        }
        for required in ["group.name", "group.socket"] {
            if !given.iter().any(|name| name == required) {
                self.wrong(source.clone(), required, Mistake::Missing);
                self.broken.push(group_key(i, required));
            }
        }
        self.sources.insert(format!("group[{i}]"), source);
        self.options.groups.push(group);
    }

    fn variables(&mut self, env: &[(String, String)]) {
        let mut given: Vec<_> = env.iter().filter(|(name, _)| name.starts_with("LAPIS_")).collect();
        given.sort();
        let names: Vec<String> = Options::DEFINITIONS.iter().map(Definition::variable).collect();
        for (name, value) in given {
            let known = names.iter().position(|known| known == name);
            if let Some(i) = known {
                let source = Source::Variable(name.clone());
                self.set(Options::DEFINITIONS[i].name, &Raw::Word(value.clone()), source);
            } else if !OTHER_VARIABLES.contains(&name.as_str()) && !name.starts_with(STAND_IN_PREFIX) {
                self.unknown_variable(name, nearest(name, names.iter().map(String::as_str)));
            }
        }
    }

    /// What looks like a slip is refused. Other names are only noted: Kubernetes gives every container variables
    /// called after its services, LAPIS_SERVICE_HOST and the like.
    fn unknown_variable(&mut self, name: &str, nearest: Option<&str>) {
        match nearest {
            Some(nearest) => {
                let mistake = Mistake::UnknownVariable { nearest: Some(nearest.into()) };
                self.wrong(Source::Variable(name.into()), "", mistake);
            }
            None => self.notes.push(format!("{name} is no option and is passed over")),
        }
    }

    fn flag(&mut self, name: &'static str, value: &str) {
        let definition = find(Options::DEFINITIONS, name).expect("flags are made from the definitions");
        self.set(name, &Raw::Word(value.into()), Source::Flag(definition.flag()));
    }

    fn set(&mut self, name: &str, raw: &Raw, source: Source) {
        match self.options.set(name, raw) {
            Ok(()) => self.broken.retain(|broken| broken != name),
            Err(mistake) => {
                self.wrong(source.clone(), name, mistake);
                self.broken.push(name.into());
            }
        }
        self.sources.insert(name.into(), source);
    }

    fn finish(self) -> Result<Effective, ConfigErrors> {
        let Self { options, sources, notes, mut errors, .. } = self;
        if errors.is_empty() {
            return Ok(Effective { options, sources, notes });
        }
        errors.sort_by(|a, b| a.source.cmp(&b.source));
        Err(ConfigErrors(errors))
    }
}

/// "group.socket" of the group at `i`: "group[0].socket".
pub(crate) fn group_key(i: usize, name: &str) -> String {
    name.replacen("group", &format!("group[{i}]"), 1)
}

fn find(definitions: &'static [Definition], name: &str) -> Option<&'static Definition> {
    definitions.iter().find(|definition| definition.name == name)
}
