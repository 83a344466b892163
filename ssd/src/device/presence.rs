//! Whether a block device is still there: one that was pulled out keeps its place for whoever has it open, and answers nothing
//! any more.

use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};

use super::DeviceFile;

/// Of one open device; to be dropped with it: its number is given to another one only when nobody has it open.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    /// What sysfs has as long as the kernel has the device. `None`: nothing can be known, it counts as there.
    folder: Option<PathBuf>,
}

impl Presence {
    pub fn of(file: &DeviceFile) -> Self {
        Self::within(Path::new("/sys"), file)
    }

    fn within(sys: &Path, file: &DeviceFile) -> Self {
        let stat = fstat(file).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice);
        let number = |device| format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        Self::by(stat.map(|stat| sys.join("dev/block").join(number(stat.st_rdev))))
    }

    /// By a path that is there as long as the device is. One that is not there at first says nothing.
    pub fn by(path: Option<PathBuf>) -> Self {
        Self { folder: path.filter(|path| path.exists()) }
    }

    /// Never true of a regular file, or where sysfs cannot be read.
    pub fn is_gone(&self) -> bool {
        self.folder.as_ref().is_some_and(|folder| matches!(folder.try_exists(), Ok(false)))
    }
}

#[test]
fn what_was_there_and_is_not_is_gone_and_a_file_never_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("259:0");
    assert!(!Presence::by(Some(place.clone())).is_gone(), "it never was there");
    std::fs::create_dir(&place).expect("room");
    let presence = Presence::by(Some(place.clone()));
    assert!(!presence.is_gone());
    std::fs::remove_dir(&place).expect("it is ours");
    assert!(presence.is_gone());
    let path = folder.path().join("log");
    let file = DeviceFile::open(&path, Some(1 << 20)).expect("a file");
    let presence = Presence::of(&file);
    std::fs::remove_file(&path).expect("it is ours");
    assert!(!presence.is_gone(), "its bytes are there as long as it is open");
}
