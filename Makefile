# Every task of the project. Targets change nothing outside the tree, except those marked [host]:
# they install Debian packages, and mount and run containers below /var/tmp, as root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The daemon is tested with its named crash points compiled in; releases have none.
FEATURES := --features crash-points
NOT_RUN := $(CURDIR)/target/not-run.txt

.PHONY: help build check fmt lint unit test test-full demo bench bench-fuse doc fuzz deps install clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

build: ## Build the release binary, target/release/overstream
	cargo build --release --bin overstream

check: fmt lint unit doc ## Format, lints, unit tests, rustdoc; needs no root

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets $(FEATURES) -- -D warnings
	# The rules know nothing of FUSE.
	cargo clippy -p overstream-fuse --no-default-features -- -D warnings

unit:
	cargo test --workspace --lib $(FEATURES)

doc: ## Build the rustdoc, warnings refused
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet

test: deps check ## Everything against real parts: containerd, overlayfs, loop devices [host]
	@rm -f $(NOT_RUN)
	OVERSTREAM_NOT_RUN_FILE=$(NOT_RUN) timeout 1800 cargo test --workspace $(FEATURES) --tests
	@scripts/not-run.sh $(NOT_RUN)

test-full: deps ## All versions, file systems, soaks, fuzzing; SHARD=n runs one of the shards [host]
	@rm -f $(NOT_RUN)
	OVERSTREAM_NOT_RUN_FILE=$(NOT_RUN) scripts/test-full.sh $(SHARD)
	@scripts/not-run.sh $(NOT_RUN)

demo: build ## Run a real container on Overstream and look at it [host]
	scripts/deps.sh containerd
	cargo run --quiet --release -p overstream-testkit --bin demo

bench: build ## Compare with containerd's overlayfs snapshotter, side by side [host]
	scripts/deps.sh containerd
	cargo run --quiet --release -p overstream-testkit --bin bench -- $(BENCH)

bench-fuse: build ## Compare with other overlay file systems, side by side [host]
	scripts/deps.sh peers
	scripts/peers.sh fuse-overlayfs
	cargo run --quiet --release -p overstream-testkit --bin bench-fuse -- $(BENCH)

fuzz: ## Fuzz the filter parser for SECONDS (default 60) [host: installs cargo-fuzz]
	scripts/fuzz.sh $(or $(SECONDS),60)

deps: ## Install what the tests need: Debian packages, and pjdfstest below target [host]
	scripts/deps.sh containerd registry fs peers trace
	scripts/peers.sh pjdfstest

install: build ## Install binary, units and example configuration below DESTDIR [host]
	install -D -m 0755 target/release/overstream $(DESTDIR)/usr/bin/overstream
	ln -sf overstream $(DESTDIR)/usr/bin/overstream-mount
	install -d $(DESTDIR)/usr/sbin
	ln -sf ../bin/overstream $(DESTDIR)/usr/sbin/mount.overstream
	install -D -m 0644 dist/overstream.service $(DESTDIR)/usr/lib/systemd/system/overstream.service
	install -D -m 0644 dist/overstream.socket $(DESTDIR)/usr/lib/systemd/system/overstream.socket
	install -D -m 0644 dist/config.toml $(DESTDIR)/usr/share/doc/overstream/config.toml

clean: ## Remove everything built
	cargo clean
	rm -rf fuzz/target
