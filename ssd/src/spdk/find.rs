//! Which files SPDK's libraries are, and whether their version is one that the declarations here fit. Pure but for the look
//! into folders.

use std::path::{Path, PathBuf};

use super::NoSpdk;

pub(crate) const ENV: &str = "libspdk_env_dpdk.so";
pub(crate) const NVME: &str = "libspdk_nvme.so";

/// Versions of the libraries, as in their file names, and the releases that have them: read in their Makefiles. The first is
/// the one with `opts_size` in the environment's options; a later one may have changed anything.
const ENV_KNOWN: (u32, u32) = (15, 17);
const NVME_KNOWN: (u32, u32) = (14, 18);
pub(crate) const RELEASES: &str = "24.09 to 26.05";

/// Where SPDK's `make install` and packages put it.
const FOLDERS: [&str; 7] = [
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

/// Both libraries, their links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libraries {
    pub env: PathBuf,
    pub nvme: PathBuf,
    /// As in the file names: "16.1" and "17.0".
    pub env_version: String,
    pub nvme_version: String,
}

/// Looks in `folder`, or where SPDK usually is.
pub fn find(folder: Option<&Path>) -> Result<Libraries, NoSpdk> {
    let folders: Vec<&Path> = folder.map_or_else(|| FOLDERS.iter().map(Path::new).collect(), |folder| vec![folder]);
    let both = folders.iter().find_map(|folder| Some((newest(folder, ENV)?, newest(folder, NVME)?)));
    let Some((env, nvme)) = both else {
        let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(NoSpdk::NotFound { looked });
    };
    let env_version = fit(&env, ENV, ENV_KNOWN)?;
    let nvme_version = fit(&nvme, NVME, NVME_KNOWN)?;
    Ok(Libraries { env, nvme, env_version, nvme_version })
}

/// The file that `name` leads to; without such a link, of those with a version the newest.
fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    if let Ok(found) = folder.join(name).canonicalize() {
        return Some(found);
    }
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let versioned = entries.filter_map(|path| Some((version(&path, name)?, path)));
    let (_, path) = versioned.max_by_key(|(version, _)| *version)?;
    path.canonicalize().ok()
}

/// "libspdk_nvme.so.17.0": (17, 0).
fn version(path: &Path, name: &str) -> Option<(u32, u32)> {
    let rest = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('.')?;
    let (major, minor) = rest.split_once('.').unwrap_or((rest, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn fit(path: &Path, name: &'static str, (first, last): (u32, u32)) -> Result<String, NoSpdk> {
    let found = version(path, name);
    match found {
        Some((major, minor)) if (first..=last).contains(&major) => Ok(format!("{major}.{minor}")),
        found => {
            let found = found.map_or("none in its name".into(), |(major, minor)| format!("{major}.{minor}"));
            Err(NoSpdk::Version { library: path.to_owned(), found, first, last })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        files.iter().for_each(|name| std::fs::write(folder.path().join(name), "").expect("room"));
        folder
    }

    #[test]
    fn links_are_followed_to_a_version_that_is_known() {
        let made = folder(&["libspdk_env_dpdk.so.16.1", "libspdk_nvme.so.17.0"]);
        std::os::unix::fs::symlink("libspdk_nvme.so.17.0", made.path().join(NVME)).expect("a link");
        let found = find(Some(made.path())).expect("both are there");
        assert_eq!((found.env_version.as_str(), found.nvme_version.as_str()), ("16.1", "17.0"));
        assert!(found.nvme.ends_with("libspdk_nvme.so.17.0"));
    }

    #[test]
    fn without_a_link_the_newest_counts() {
        let made = folder(&["libspdk_env_dpdk.so.15.0", "libspdk_env_dpdk.so.16.1", "libspdk_nvme.so.15.2", "x.so.99"]);
        assert_eq!(find(Some(made.path())).expect("both are there").env_version, "16.1");
    }

    #[test]
    fn what_is_not_there_or_not_known_is_refused_with_what_is() {
        let none = folder(&["libspdk_env_dpdk.so.16.1"]);
        let said = find(Some(none.path())).expect_err("one is missing").to_string();
        assert!(said.contains("libspdk_nvme.so") && said.contains(&none.path().display().to_string()), "{said}");
        let cases = [
            (["libspdk_env_dpdk.so.14.0", "libspdk_nvme.so.13.0"], "version 14.0"),
            (["libspdk_env_dpdk.so.17.0", "libspdk_nvme.so.19.0"], "version 19.0"),
            (["libspdk_env_dpdk.so", "libspdk_nvme.so.17.0"], "none in its name"),
        ];
        for (files, words) in cases {
            let made = folder(&files);
            let said = find(Some(made.path())).expect_err("not known").to_string();
            assert!(said.contains(words) && said.contains(RELEASES), "{said}");
        }
    }
}
