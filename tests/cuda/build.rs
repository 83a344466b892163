//! The name by which the loader knows the library, whatever the file is called.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // cudarc asks for `libcuda.so` first: a library of that name that is loaded already is the one that it gets.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    // Its threads outlive a `dlclose`.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
