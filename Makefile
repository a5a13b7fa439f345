# Everything here goes through .ci/cargo, which links RocksDB from one build kept outside the clone (.ci/rocksdb).
# Plain cargo works too; it compiles RocksDB itself, which takes some 20 minutes longer, once.
#
# cargo always gets the whole workspace: features are then the same for binary, tests and lints, and nothing compiles twice.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

cargo := bash .ci/cargo
release = $$(cargo metadata --offline --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release
binary = $(release)/stillwell
# Tests at a time: those with a broker wait for most of their time, for groups, time limits and batches.
threads = $$((3 * $$(getconf _NPROCESSORS_ONLN)))
# Narrows what `make test` runs, in cargo's words; what `make demo` gives to the demo; what `make bench` measures and prints.
TESTS ?=
ARGS ?=
BENCH ?=
RECORDS ?= 1000000
OUTPUT ?= table

.PHONY: help setup build demo test bench faults check fmt clippy doc image

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup: ## install what a build needs, or say what is missing
	@bash .ci/setup

build: setup ## the release binary; its path is the last line
	@$(cargo) build --release --locked --workspace --bins
	@echo "$(binary)"

demo: build ## the whole system on an embedded broker; ARGS="--for 30s" …
	@"$(binary)" demo $(ARGS)

test: ## all tests, on a real broker; TESTS="--test flow" for some
	@bash .ci/setup test
	@$(cargo) build --release --locked --workspace --bins
	@STILLWELL_BIN="$(binary)" RUST_TEST_THREADS="$${RUST_TEST_THREADS:-$(threads)}" \
		$(cargo) test --release --locked --workspace $(TESTS)

# Of what BENCH names, what is no `stillwell bench` and prints lines of its own: `cargo bench --bench NAME`.
programs := codec allocations

bench: ## ours against the bare minimum of the same work; BENCH="read open codec" for some, RECORDS=N, OUTPUT=json
	@bash .ci/setup test
	@[ -z "$(BENCH)" ] || [ -n "$(filter-out $(programs),$(BENCH))" ] || exit 0; \
		$(cargo) build --release --locked --workspace --bins --example broker; \
		STILLWELL_TEST_BROKER=native RECORDS="$(RECORDS)" OUTPUT="$(OUTPUT)" \
		"$(release)/examples/broker" bash .ci/bench "$(binary)" $(filter-out $(programs),$(BENCH))
	@for program in $(filter $(programs),$(BENCH)); do \
		$(cargo) bench --locked --workspace --bench "$$program" -- "$(RECORDS)"; done

faults: ## the campaign of faults: FAULTS_FOR=30m or all (5m); STILLWELL_SEED=… FAULTS_SCENE=… to repeat
	@bash .ci/setup test
	@$(cargo) build --release --locked --workspace --bins
	@[ -n "$${FAULTS_SCENE:-}" ] || STILLWELL_TORTURE=$${STILLWELL_TORTURE:-2m} $(cargo) test --release --locked --workspace --lib log::tests::torture
	@[ -n "$${FAULTS_SCENE:-}" ] || STILLWELL_BIN="$(binary)" $(cargo) test --release --locked --workspace --test faults -- --ignored --nocapture backlog
	@STILLWELL_BIN="$(binary)" $(cargo) test --release --locked --workspace --test faults -- --ignored --nocapture campaign

check: setup ## format, lints and documentation, as CI wants them
	@cargo fmt --all --check
	@$(cargo) clippy --release --locked --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(cargo) doc --release --locked --workspace --no-deps

fmt: ## format the source
	@cargo fmt --all

clippy: setup ## lints alone
	@$(cargo) clippy --release --locked --workspace --all-targets -- -D warnings

doc: setup ## the library's documentation; its path is the last line
	@RUSTDOCFLAGS="-D warnings" $(cargo) doc --release --locked --workspace --no-deps

image: ## the container image stillwell:latest
	@docker build -t stillwell:latest -f docker/Dockerfile .
