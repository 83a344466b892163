//! A CUDA driver over host memory: `libcuda.so` for tests, by which the real calls of cudarc run where no GPU is.
//!
//! Built by `cargo build --release -p lapis-cuda-standin`; the file is `target/release/libcuda.so`. Programs take it as the
//! option that names the library does (the path of the file), or find it by `LD_LIBRARY_PATH`, copied as `libcuda.so` and
//! `libcuda.so.1`. It is no part of the daemon.
//!
//! It shows that calls are made as the driver's interface has them, in an order that is safe, and what becomes of errors. It
//! shows nothing about the speed of a GPU, nor about what a real driver does that its manual does not say.
//!
//! - Device memory is a memfd, reached by device pointers that the host itself cannot touch (SIGSEGV). Its descriptors can be
//!   passed on and outlive the process. Addresses are never given out twice.
//! - A stream is a thread with a queue: a copy reads and writes when the stream comes to it, after a latency drawn by seed.
//! - What is ordered is known by vector clocks over streams, events and the waiting of the host (all its threads count as
//!   one). Two operations that touch the same bytes, one writing, with nothing between them, are a race. Host memory that is
//!   mapped twice is one memory. Across processes nothing of this is known. What the host itself reads or writes is
//!   known only where a test says so: [`lapis_cuda_host_touches`].
//!
//! Read once, at the first call, per process:
//!
//! | variable | means | else |
//! |---|---|---|
//! | `LAPIS_CUDA_DEVICES` | how many devices | 1 |
//! | `LAPIS_CUDA_BYTES` | bytes of each, with commas between, the last counts for the rest | 256 MiB |
//! | `LAPIS_CUDA_SEED` | of latencies and errors | 0 |
//! | `LAPIS_CUDA_LATENCY_US` | of each copy, `LOW-HIGH` | 0 |
//! | `LAPIS_CUDA_REGISTER_US` | of each registration of host memory | 0 |
//! | `LAPIS_CUDA_ERRORS` | a list of `[DEVICE:]KIND=N[xTIMES]`: one in N fails, at most TIMES | none |
//! | `LAPIS_CUDA_LOSE` | a list of `DEVICE@CALLS`, lost after so many calls, or `DEVICE@/PATH`, lost while that file is there | none |
//! | `LAPIS_CUDA_HANG` | a list of `DEVICE@/PATH`: calls to it do not return while that file is there | none |
//! | `LAPIS_CUDA_LOST_AS` | the error of a lost device: 46, 214, 700, 719 | 46 |
//! | `LAPIS_CUDA_WITHOUT` | a list of `vmm`, `descriptors`, `peers` that no device has | none |
//! | `LAPIS_CUDA_LINK` | how the ways between devices rank, or `nvlink`: the best, and atomics go over them | 0 |
//! | `LAPIS_CUDA_PAGEABLE` | `allow`: host memory that is not registered may be in asynchronous copies | `refuse` |
//! | `LAPIS_CUDA_MISUSES` | file to which each misuse is appended, a line each | none |
//!
//! Kinds of errors: `memory` (an allocation is refused), `copy` (the call is refused; of a batch a part was taken), `event` (a
//! record is refused), `import` (shared memory is refused), `query` (whether an event was reached is not said, as while somebody captures a graph), `sticky` (a copy fails as it runs; every call of its context fails from then on, until the primary
//! context is reset or released).
//!
//! Of graphs that are captured (`cuStreamBeginCapture`) it knows what they forbid other threads meanwhile (`capture`), no more.
//!
//! An old driver, which lacks functions, is a copy of the file in which their names are overwritten:
//! `LC_ALL=C sed s/cuMemcpyBatchAsync/xxMemcpyBatchAsync/g libcuda.so`.
//!
//! Misuse is answered by the error that CUDA has for it, printed, appended to the file, and counted: [`lapis_cuda_misuses`],
//! [`lapis_cuda_misuse`]. [`misuse::Kind`] lists what is found.

mod api;
mod capture;
mod clock;
mod event;
mod faults;
mod history;
mod memory;
mod misuse;
mod object;
mod options;
mod stream;
mod world;

pub use api::*;
pub use misuse::{lapis_cuda_misuse, lapis_cuda_misuses};
