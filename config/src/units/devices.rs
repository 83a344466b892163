//! Names of devices. Pure.

use std::path::PathBuf;

use super::{Described, Raw, Unit};
use crate::mistake::Mistake;

/// Names of devices as the kernel gives them, none twice.
pub struct Devices {
    pub most: usize,
}

impl Described for Devices {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("a list of at most {} names, none twice", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Devices {
    type Value = Vec<String>;
    fn read(&self, raw: &Raw) -> Result<Vec<String>, Mistake> {
        let items = raw.items("a list of names of devices, like [\"mlx5_0\", \"mlx5_1\"]")?;
        if items.len() > self.most {
            return Err(Mistake::TooLarge { given: items.len().to_string(), most: format!("{} devices", self.most) });
        }
        let mut names: Vec<String> = Vec::with_capacity(items.len());
        for item in &items {
            let text = item.text("a name in quotes")?;
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            if text.is_empty() || text.len() > 63 || text.starts_with('.') || !text.bytes().all(fits) {
                return Err(Mistake::NotA { given: text.into(), expected: "a name of a device, like mlx5_0" });
            }
            if names.iter().any(|name| name == text) {
                return Err(Mistake::Twice { given: text.into() });
            }
            names.push(text.into());
        }
        Ok(names)
    }
    fn show(&self, value: &Vec<String>) -> String {
        let words: Vec<String> = value.iter().map(|name| format!("{name:?}")).collect();
        format!("[{}]", words.join(", "))
    }
}

/// A folder with libraries; "auto" is wherever they usually are.
pub struct LibraryFolder;

impl Described for LibraryFolder {
    fn hint(&self) -> &'static str {
        "FOLDER"
    }
    fn bounds(&self) -> String {
        "an absolute path, or \"auto\"".into()
    }
}

impl Unit for LibraryFolder {
    type Value = Option<PathBuf>;
    fn read(&self, raw: &Raw) -> Result<Option<PathBuf>, Mistake> {
        match raw.text("a folder, like \"/usr/local/lib\"")? {
            "auto" => Ok(None),
            text if text.starts_with('/') && !text.contains('\0') => Ok(Some(text.into())),
            text => Err(Mistake::NotA { given: text.into(), expected: "an absolute path of a folder" }),
        }
    }
    fn show(&self, value: &Option<PathBuf>) -> String {
        value.as_ref().map_or("auto".into(), |folder| folder.display().to_string())
    }
}
