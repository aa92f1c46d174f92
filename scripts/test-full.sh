#!/bin/bash
# The long tests, in shards of at most 40 minutes on two cores.
#   scripts/test-full.sh            all shards
#   scripts/test-full.sh N          shard N
#   scripts/test-full.sh --count    how many there are
set -eu
cd "$(dirname "$0")/.."

shards=(containerd-1.7 containerd-2.x power soak overlay)

run() { timeout 2400 cargo test --features crash-points "$@"; }

with_containerd() {
    OVERSTREAM_CONTAINERD=$1 run --test containerd --test cri --test placement --test retain --test volatile
}

shard() {
    echo "=== shard $1: ${shards[$1]} ==="
    case ${shards[$1]} in
    containerd-1.7) with_containerd 1.7 ;;
    containerd-2.x) with_containerd 2.x ;;
    power) OVERSTREAM_FULL=1 run --test power --test crash ;;
    soak)
        OVERSTREAM_SOAK_SECONDS=180 run --test model --test crash
        run --test pjdfstest
        scripts/fuzz.sh 60
        ;;
    overlay)
        OVERSTREAM_FULL=1 run --test fuse_crash --test fuse_soak
        OVERSTREAM_FULL=1 run -p overstream-fuse --test races
        ;;
    esac
}

case ${1:-} in
--count) echo "${#shards[@]}" ;;
"") for i in "${!shards[@]}"; do shard "$i"; done ;;
*) shard "$1" ;;
esac
