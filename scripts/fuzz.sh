#!/bin/bash
# Fuzzes the filter parser. libFuzzer's flags are unstable in cargo, hence the bootstrap variable.
set -eu
cd "$(dirname "$0")/.."
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
RUSTC_BOOTSTRAP=1 cargo fuzz run filter -- -dict=fuzz/filter.dict -max_total_time="$1" -print_final_stats=1
