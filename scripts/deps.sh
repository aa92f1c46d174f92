#!/bin/sh
# Installs the packages that tests, demo and benchmarks need and this Debian system lacks.
#
#   scripts/deps.sh [GROUP...]      without groups: all of them
#
#   containerd   containerd, runc and a static busybox to build images from
#   registry     an image registry
#   fs           programs for xfs, btrfs, FAT and FUSE
#   peers        fuse-overlayfs in C, git to work in it, and what building pjdfstest takes
#   trace        strace, which makes system calls fail
set -eu

fail() {
	echo "deps.sh: $*" >&2
	exit 1
}

# Prints the packages of a group.
packages() {
	case $1 in
	containerd) echo containerd runc busybox-static ;;
	registry) echo docker-registry ;;
	fs) echo xfsprogs btrfs-progs dosfstools fuse3 ;;
	peers) echo fuse-overlayfs git libacl1-dev ;;
	trace) echo strace ;;
	*) fail "no such group: $1 (there are: containerd registry fs peers trace)" ;;
	esac
}

installed() {
	status=$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) && [ "$status" = installed ]
}

for tool in apt-get dpkg-query; do
	command -v "$tool" >/dev/null ||
		fail "needs $tool; on other systems install by hand what it names"
done

[ $# -gt 0 ] || set -- containerd registry fs peers trace

missing=
for group; do
	list=$(packages "$group")
	for package in $list; do
		installed "$package" || missing="$missing $package"
	done
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || fail "needs root's rights to install:$missing"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
	# shellcheck disable=SC2086  # a list of names
	DEBIAN_FRONTEND=noninteractive apt-get -y -qq --no-install-recommends \
		-o DPkg::Lock::Timeout=300 install $missing >"$log" 2>&1
}
# A new machine has no package lists yet, or old ones.
if ! install; then
	apt-get -qq update >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get update failed"; }
	install || { cat "$log" >&2; fail "cannot install:$missing"; }
fi
echo "deps.sh: installed$missing"
