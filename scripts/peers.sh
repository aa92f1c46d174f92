#!/bin/sh
# Builds the peers that `make bench-fuse` compares with and that no Debian package has: fuse-overlayfs
# in Rust, from the crate registry, below target/peers. Nothing of it becomes part of Overstream.
#
#   scripts/peers.sh
#
# A peer that cannot be had is no error: the reason is left in target/peers/bin/why-not, and the
# benchmark repeats it.
set -eu
cd "$(dirname "$0")/.."

version=2.0.0
root=$PWD/target/peers

"$root/bin/fuse-overlayfs" --version 2>/dev/null | grep -qF " $version" && exit 0

mkdir -p "$root/bin"
echo "peers.sh: building fuse-overlayfs $version, once" >&2
if cargo install --quiet --locked --version "$version" --root "$root" \
	--target-dir "$root/build" fuse-overlayfs >"$root/log" 2>&1; then
	rm -f "$root/bin/why-not"
else
	{
		echo "cargo install fuse-overlayfs $version failed"
		grep -m 3 '^error' "$root/log" || tail -n 3 "$root/log"
	} >"$root/bin/why-not"
	cat "$root/bin/why-not" >&2
fi
rm -rf "$root/build"
