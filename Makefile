# Index of commands; each line calls cargo or a script.

.PHONY: help up test bench lint build vm-test man fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

up: ## install what is missing, build, start a one-machine cluster with an example
	@scripts/up

test: ## everything that CI checks: formatting, lints, documentation, tests, virtual machines
	@scripts/test

bench: ## the table of budgets, measured against peers from Debian
	@scripts/bench

lint: ## formatting, clippy, rustdoc
	@scripts/lint

build: ## release builds of the three programs, in target/release
	@scripts/build

vm-test: build ## only the tests in virtual machines
	@cargo nextest run -p knarr-vm-tests

man: ## manual pages of knarr and knarr-oci, in target/man
	@scripts/man

fuzz: ## feed the parsers with what they do not expect, ten minutes each
	@scripts/fuzz

clean: ## remove what was built
	@cargo clean
