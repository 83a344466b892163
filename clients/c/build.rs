//! What the linker has to know of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Changes when a program that was linked before would not run any more: the upper half of LAPIS_ABI_VERSION.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblapis.so.0");
    // A dlclose must not take code away under the threads of a client that is still open.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
