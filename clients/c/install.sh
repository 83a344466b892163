#!/bin/sh
# Installs the C client: header, libraries and pkg-config file.
#
#     clients/c/install.sh PREFIX [FOLDER]
#
# Builds it first, in release. With FOLDER nothing is built: liblapis.so and liblapis.a are there. DESTDIR is put before
# PREFIX where files go, and stays out of the pkg-config file.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 PREFIX [FOLDER]" >&2
    exit 2
fi
case $1 in
/*) prefix=$1 ;;
*) prefix=$PWD/$1 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
soname=liblapis.so.0 # build.rs has it, too

if [ $# -eq 2 ]; then
    built=$2
else
    built=$root/target/release
    cargo build --release -p lapis-client-c --manifest-path "$root/Cargo.toml" --target-dir "$root/target"
fi

to=${DESTDIR:-}$prefix
mkdir -p "$to/include" "$to/lib/pkgconfig"
install -m 644 "$here/include/lapis.h" "$to/include/lapis.h"
install -m 644 "$built/liblapis.a" "$to/lib/liblapis.a"
install -m 755 "$built/liblapis.so" "$to/lib/liblapis.so.$version"
ln -sf "liblapis.so.$version" "$to/lib/$soname"
ln -sf "$soname" "$to/lib/liblapis.so"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" "$here/lapis.pc.in" >"$to/lib/pkgconfig/lapis.pc"
echo "lapis $version is in $to; pkg-config finds it with PKG_CONFIG_PATH=$prefix/lib/pkgconfig"
