# The .wasm files of the images and of the tests, from their sources. Included by the top Makefile.
#
# The builds are reproducible: the same toolchain makes the same bytes wherever the tree lies. So the
# .wasm files are committed, and test_guests_current.py tells whether they still match their sources.

RUSTC ?= /usr/bin/rustc
CLANG ?= clang-14

# What the committed files were built with: Debian 12's packages, as apt-get takes them.
GUESTS_PACKAGES := \
  clang-14=1:14.0.6-12 \
  lld-14=1:14.0.6-12 \
  libclang-rt-14-dev-wasm32=1:14.0.6-12 \
  wasi-libc=0.0~git20220510.9886d3d-2 \
  rustc=1.63.0+dfsg1-2 \
  libstd-rust-dev-wasm32=1.63.0+dfsg1-2

# Commands have _start, reactors _initialize. The others are linked without start files, which no host calls.
GUESTS_COMMANDS := \
  images/spin/wagi-hello/wagi_hello.wasm \
  containerd-shim-spin-v1/tests/guests/wagi_probe.wasm \
  containerd-shim-slight-v1/tests/guests/program.wasm \
  images/wws/c.wasm \
  images/wws/greet.wasm \
  images/wws/counter.wasm \
  containerd-shim-wws-v1/tests/guests/client.wasm \
  containerd-shim-wws-v1/tests/guests/probe.wasm
GUESTS_REACTORS := \
  containerd-shim-wws-v1/tests/guests/engine.wasm
GUESTS_COMPONENTS := \
  images/spin/c-hello/c_hello.wasm \
  images/spin-key-value/key_value.wasm \
  images/slight/app.wasm \
  images/slight-messaging/app.wasm \
  $(patsubst %.c,%.wasm,$(filter-out $(patsubst %.wasm,%.c,$(GUESTS_COMMANDS) $(GUESTS_REACTORS)), \
    $(sort $(wildcard containerd-shim-*-v1/tests/guests/*.c))))
GUESTS_RUST := \
  images/spin/hello/hello.wasm \
  images/spin/redis-hello/redis_hello.wasm \
  images/spin-outbound-redis/outbound_redis.wasm
GUESTS_RUST_COMMANDS := \
  containerd-shim-wws-v1/tests/guests/rust_worker.wasm
GUESTS := $(GUESTS_COMMANDS) $(GUESTS_REACTORS) $(GUESTS_COMPONENTS) $(GUESTS_RUST) \
  $(GUESTS_RUST_COMMANDS)

GUESTS_CFLAGS := --target=wasm32-wasi -std=gnu17 -Os -flto -Wall -Wextra -Werror \
  -ffile-prefix-map=$(CURDIR)=. -Iimages/spin/c-hello -Iimages/slight -Iimages/wws -Wl,--strip-all
GUESTS_RUSTFLAGS := --target wasm32-wasi --edition 2021 -D warnings \
  -C opt-level=s -C lto=fat -C codegen-units=1 -C panic=abort -C strip=symbols \
  --remap-path-prefix $(CURDIR)=.

# More memory than a container is likely to allow, asked for before any code runs.
containerd-shim-spin-v1/tests/guests/huge_memory.wasm.build: GUESTS_LDFLAGS := -Wl,--initial-memory=3221225472

# Targets of their own, not the files: nothing that only needs a .wasm file ever builds one, though a
# checkout gives sources and results any order of age.
GUESTS_BUILDS := $(GUESTS:=.build)

.PHONY: guests guests-list guests-packages $(GUESTS_BUILDS)
guests: $(GUESTS_BUILDS)  ## rebuild every .wasm of the images and the tests from its source

guests-list:
	@printf '%s\n' $(GUESTS)

guests-packages:
	@printf '%s\n' $(GUESTS_PACKAGES)

$(GUESTS_COMMANDS:=.build): %.wasm.build: %.c
	$(CLANG) $(GUESTS_CFLAGS) -o $*.wasm $<
	@chmod 644 $*.wasm

$(GUESTS_REACTORS:=.build): %.wasm.build: %.c
	$(CLANG) $(GUESTS_CFLAGS) -mexec-model=reactor -o $*.wasm $<
	@chmod 644 $*.wasm

$(GUESTS_COMPONENTS:=.build): %.wasm.build: %.c
	$(CLANG) $(GUESTS_CFLAGS) -nostartfiles -Wl,--no-entry $(GUESTS_LDFLAGS) -o $*.wasm $<
	@chmod 644 $*.wasm

$(GUESTS_RUST:=.build): %.wasm.build: %.rs
	$(RUSTC) $(GUESTS_RUSTFLAGS) --crate-type cdylib -o $*.wasm $<
	@chmod 644 $*.wasm

$(GUESTS_RUST_COMMANDS:=.build): %.wasm.build: %.rs
	$(RUSTC) $(GUESTS_RUSTFLAGS) -o $*.wasm $<
	@chmod 644 $*.wasm
