#!/usr/bin/env bash
# Block devices that hang, fail, lie and come back, under the release binary: `process::ssd_devices` in a throw-away
# virtual machine with an NVMe device and the device mapper (tests/testbed/run; its first use installs QEMU and fetches
# a kernel). Exit status 0 also where there is no virtual machine to be had, with a line that says so.
set -u
cd "$(dirname "$0")/../.." || exit 1
packages=${LAPIS_PACKAGES:---workspace} # of which cargo builds; .ci/run has some alone
built=$(cargo test --release $packages --test process --no-run 2>&1) || { printf '%s\n' "$built"; exit 1; }
test=$(printf '%s\n' "$built" | sed -n 's/.*Executable.*(\(.*\))/\1/p')
# With the example what it stands on has the features that tests give it: nothing is built twice.
cargo build --release $packages --bin lapis --example ssd_rate || exit 1
if [ "$(uname -m)" != x86_64 ] || ! tests/testbed/run --quiet --setup; then
    echo "skipped: no virtual machine can be had here (see above)"
    exit 0
fi
# Its folder is shared with the machine, too slow for anything but the binary: files and sockets go to /tmp there.
tests/testbed/run --quiet --nvme 1 --nvme-size 700M --mem 3G --timeout "${TESTBED_SSD_S:-420}" -- \
    env LAPIS_TEST_DEVICE=/dev/nvme0n1 TMPDIR=/tmp "$test" --nocapture --test-threads=1 "${@:-ssd_devices}"
