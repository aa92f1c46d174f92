#!/bin/sh
# Builds what no Debian package has, from the crate registry, below target/peers. Nothing of it becomes
# part of Overstream.
#
#   scripts/peers.sh [NAME...]      without names: all of them
#
#   fuse-overlayfs   in Rust: `make bench-fuse` compares with it
#   pjdfstest        checks of a file system: tests/pjdfstest.rs runs them
#
# What cannot be had is no error: the reason is left in target/peers/bin/NAME.why-not, and who wanted
# it repeats it.
set -eu
cd "$(dirname "$0")/.."

root=$PWD/target/peers

# Builds NAME in VERSION, with further arguments for cargo install.
build() {
	name=$1 version=$2
	shift 2
	"$root/bin/$name" --version 2>/dev/null | grep -qF " $version" && return
	mkdir -p "$root/bin"
	echo "peers.sh: building $name $version, once" >&2
	why=$root/bin/$name.why-not
	if cargo install --quiet --locked --version "$version" --root "$root" \
		--target-dir "$root/build" "$@" "$name" >"$root/log" 2>&1; then
		rm -f "$why"
	else
		{
			echo "cargo install $name $version failed"
			grep -m 3 '^error' "$root/log" || tail -n 3 "$root/log"
		} >"$why"
		cat "$why" >&2
	fi
	rm -rf "$root/build"
}

[ $# -gt 0 ] || set -- fuse-overlayfs pjdfstest

for peer; do
	case $peer in
	fuse-overlayfs) build fuse-overlayfs 2.0.0 ;;
	# What takes time in it are the calls.
	pjdfstest) build pjdfstest 0.2.2 --debug ;;
	*)
		echo "peers.sh: no such program: $peer (there are: fuse-overlayfs pjdfstest)" >&2
		exit 1
		;;
	esac
done
