#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapis_fuzz::wire::rdma(bytes));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("a fuzz target: cargo +nightly fuzz run rdma");
}
