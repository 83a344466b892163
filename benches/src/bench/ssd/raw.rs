//! The limit of the SSD tier: a bare loop over io_uring with O_DIRECT, registered memory and a fixed file, at a given
//! depth and size. What fio does, without its book-keeping. And the processor's time, ours and that of a daemon.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    time::{Duration, Instant},
};

use io_uring::{IoUring, opcode, squeue, types};
use lapis_arena::{Access, Mapping, memfd};

/// Most that one operation moves.
pub const BYTES_MAX: usize = 4 << 20;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Read,
    Write,
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub bytes: u64,
    pub wall: Duration,
    pub cpu: Duration,
}

impl Took {
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.wall.as_secs_f64() / 1e9
    }

    pub fn cpu_us_per_gb(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.bytes as f64 / 1e9)
    }
}

/// The loop. In the order in which they go: the ring first, then what it has registered.
pub struct Raw {
    ring: IoUring,
    _file: File,
    memory: Mapping,
    depth: usize,
}

impl Raw {
    /// Over the file at `path`, with at most `depth` operations under way.
    pub fn new(path: &Path, depth: usize) -> io::Result<Self> {
        Self::over(path, depth, shared(depth)?)
    }

    /// The same with this memory, `depth` times `BYTES_MAX`: beside somebody who has the same, the only fair way, because
    /// how its pages lie decides into how many pieces an operation falls.
    pub fn over(path: &Path, depth: usize, memory: Mapping) -> io::Result<Self> {
        let file = open_direct(path)?;
        let noise: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(1..)).collect();
        (0..memory.len()).step_by(noise.len()).for_each(|offset| memory.copy_in(offset, &noise));
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        // A kernel older than 6.1 knows neither.
        let ring = builder.build(depth as u32).or_else(|_| IoUring::new(depth as u32))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let buffer = libc::iovec { iov_base: memory.as_ptr(0).cast(), iov_len: memory.len() };
        // SAFETY: the memory is mapped as long as the ring: both are fields, and the ring is dropped first.
        unsafe { ring.submitter().register_buffers(&[buffer])? };
        Ok(Self { ring, _file: file, memory, depth })
    }

    /// Moves `bytes` at each of `offsets`, in that order, at full depth until the last.
    pub fn run(&mut self, way: Way, bytes: usize, offsets: &[u64]) -> io::Result<Took> {
        assert!(bytes <= BYTES_MAX, "a buffer an operation");
        let (cpu, started) = (cpu_of_process(None)?, Instant::now());
        let mut free: Vec<usize> = (0..self.depth).collect();
        let (mut next, mut done) = (0, 0);
        while done < offsets.len() {
            while next < offsets.len()
                && let Some(slot) = free.pop()
            {
                self.push(way, slot, bytes, offsets[next]);
                next += 1;
            }
            self.ring.submit_and_wait(1)?;
            for entry in self.ring.completion() {
                if entry.result() != bytes as i32 {
                    let error = io::Error::from_raw_os_error(-entry.result().min(0));
                    return Err(io::Error::other(format!("{} of {bytes} bytes: {error}", entry.result())));
                }
                free.push(entry.user_data() as usize);
                done += 1;
            }
        }
        let wall = started.elapsed();
        Ok(Took { bytes: (bytes * offsets.len()) as u64, wall, cpu: cpu_of_process(None)? - cpu })
    }

    fn push(&mut self, way: Way, slot: usize, bytes: usize, offset: u64) {
        let (fd, memory) = (types::Fixed(0), self.memory.as_ptr(slot * BYTES_MAX));
        let entry: squeue::Entry = match way {
            Way::Read => opcode::ReadFixed::new(fd, memory, bytes as u32, 0).offset(offset).build(),
            Way::Write => opcode::WriteFixed::new(fd, memory, bytes as u32, 0).offset(offset).build(),
        };
        // SAFETY: the slot's memory lies in `memory` and is no other operation's until this one's completion; `run`
        // leaves early only on an error, which ends the bench.
        unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) }.expect("a place for each slot");
    }
}

/// Memory for operations: shared, as an arena's has to be. The kernel gives out its pages in another way than private ones.
pub fn shared(depth: usize) -> io::Result<Mapping> {
    let bytes = (depth * BYTES_MAX) as u64;
    let (fd, _) = memfd::create("bench.slots", bytes, memfd::Huge::Try).map_err(io::Error::other)?;
    let memory = Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite).map_err(io::Error::other)?;
    memfd::clear(fd.as_fd(), 0..bytes).map_err(io::Error::other)?;
    Ok(memory)
}

/// Opens what must be there, without the page cache.
fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Whether files in this folder can be used without the page cache; `None` if so, else why not.
pub fn without_direct(folder: &Path) -> io::Result<Option<String>> {
    let probe = tempfile::NamedTempFile::new_in(folder)?;
    probe.as_file().write_all_at(&[1; 4096], 0)?;
    let read = open_direct(probe.path()).and_then(|file| {
        let page = Mapping::anonymous(4096).map_err(io::Error::other)?;
        // SAFETY: the page is ours alone and as long as is read.
        let read = unsafe { libc::pread(file.as_raw_fd(), page.as_ptr(0).cast(), 4096, 0) };
        if read == 4096 { Ok(()) } else { Err(io::Error::last_os_error()) }
    });
    Ok(read.err().map(|error| error.to_string()))
}

/// Makes a file of `bytes` bytes, all of them written, the first MiB zeros: what a daemon takes for blank, and what
/// has been written once: the first writes of a file that is only allocated cost the file system more.
pub fn prepare(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.set_len(bytes)?;
    drop(file);
    let mut raw = Raw::new(path, 16)?;
    let offsets: Vec<u64> = (1..bytes >> 20).map(|mib| mib << 20).collect();
    raw.run(Way::Write, 1 << 20, &offsets).map(drop)
}

/// Processor time that a process has used so far, its threads that ended included; `None` is this one.
pub fn cpu_of_process(pid: Option<u32>) -> io::Result<Duration> {
    let mut clock = libc::CLOCK_PROCESS_CPUTIME_ID;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both write one value that is ours.
    let failed = unsafe {
        pid.map_or(0, |pid| libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock)) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Processor time of those threads of a process that `name` names.
pub fn cpu_of_threads(pid: u32, name: &str) -> io::Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() != name {
            continue;
        }
        let stat = fs::read_to_string(task.join("schedstat"))?;
        sum += stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0u64);
    }
    Ok(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_raw_is_read_raw() {
        let folder = tempfile::tempdir().expect("a folder");
        if let Some(why) = without_direct(folder.path()).expect("a file") {
            return println!("skipped: no O_DIRECT: {why}");
        }
        let path = folder.path().join("file");
        if let Err(error) = prepare(&path, 4 << 20) {
            return println!("skipped: {error}");
        }
        let mut raw = Raw::new(&path, 2).expect("a ring");
        raw.run(Way::Read, 64 << 10, &[1 << 20, 0, 64 << 10, 3 << 20]).expect("four reads");
        let found = fs::read(&path).expect("it is there");
        assert!(found[..1 << 20].iter().all(|byte| *byte == 0) && found[1 << 20..].iter().all(|byte| *byte != 0));
        let zeros: Vec<bool> = (0..2).map(|slot| raw.memory.to_vec(slot * BYTES_MAX, 1)[0] == 0).collect();
        assert!(zeros.contains(&true) || zeros.contains(&false));
    }

    #[test]
    fn a_process_that_works_uses_its_processor() {
        let before = cpu_of_process(None).expect("a clock");
        let mut word = 1u64;
        while cpu_of_process(Some(std::process::id())).expect("a clock") < before + Duration::from_millis(2) {
            word = std::hint::black_box(word.wrapping_mul(3));
        }
        assert!(cpu_of_process(None).expect("a clock") > before);
    }
}
