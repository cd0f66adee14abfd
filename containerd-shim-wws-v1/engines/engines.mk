# The engines of languages, from their sources. Included by the top Makefile.
#
# The builds are reproducible: the same toolchain makes the same bytes wherever the tree lies.

CLANG ?= clang-14
ENGINES_PYTHON ?= .venv/bin/python
ENGINES_CACHE ?= .cache/engines

ENGINES_SOURCES := containerd-shim-wws-v1/engines
ENGINES_RESULTS := containerd-shim-wws-v1/src/containerd_shim_wws_v1/engines
ENGINES := $(ENGINES_RESULTS)/javascript.wasm $(ENGINES_RESULTS)/python.wasm
# What is made first, and so when the toolchain must be there.
ENGINES_STARTS = $(QUICKJS)/.stamp $(CPYTHON)/.stamp

# The same languages as ordinary WASI commands, for WAGI components of Spin and for Slight's programs.
INTERPRETERS := dist/interpreters/javascript.wasm dist/interpreters/python.wasm

.PHONY: engines interpreters
engines: $(ENGINES)  ## build the engines of JavaScript and Python for wws workers
interpreters: $(INTERPRETERS)  ## build dist/interpreters/{javascript,python}.wasm, commands that run a source

# JavaScript: QuickJS

QUICKJS := $(ENGINES_CACHE)/quickjs-1.19.4
QUICKJS_FILES := cutils libbf libregexp libunicode
JAVASCRIPT := $(ENGINES_SOURCES)/javascript

# EMSCRIPTEN leaves out what needs threads.
JAVASCRIPT_CFLAGS := --target=wasm32-wasi -std=gnu17 -O2 -I$(QUICKJS)/patched \
  -ffile-prefix-map=$(QUICKJS)=quickjs -DEMSCRIPTEN -DCONFIG_STACK_CHECK -DCONFIG_BIGNUM \
  -DFE_DOWNWARD=0 -DFE_UPWARD=0 -DCONFIG_VERSION='"2021-03-27"' \
  '-DENGINE_FRAME(bytes)=__asm__ volatile("" ::"r"(__builtin_alloca(bytes)))'
# QuickJS's own warnings are not ours.
JAVASCRIPT_CFLAGS += -w
JAVASCRIPT_LDFLAGS := -nostartfiles -Wl,--no-entry -Wl,--stack-first -Wl,-z,stack-size=1048576 \
  -Wl,--strip-all

$(QUICKJS)/.stamp: $(JAVASCRIPT)/source.txt $(JAVASCRIPT)/quickjs.patch
	rm -rf $(QUICKJS)
	$(ENGINES_PYTHON) -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
	  --require-hashes -r $< -d $(ENGINES_CACHE)
	tar -xzf $(QUICKJS).tar.gz -C $(ENGINES_CACHE)
	cp -r $(QUICKJS)/upstream-quickjs $(QUICKJS)/patched
	patch --quiet -d $(QUICKJS)/patched -p1 < $(JAVASCRIPT)/quickjs.patch
	@touch $@

$(QUICKJS_FILES:%=$(QUICKJS)/%.o): $(QUICKJS)/%.o: $(QUICKJS)/.stamp
	$(CLANG) $(JAVASCRIPT_CFLAGS) -c -o $@ $(QUICKJS)/patched/$*.c

$(QUICKJS)/engine.o: $(JAVASCRIPT)/engine.c $(QUICKJS)/.stamp
	$(CLANG) $(JAVASCRIPT_CFLAGS) -c -o $@ $<

$(QUICKJS)/engine.wasm: $(QUICKJS)/engine.o $(QUICKJS_FILES:%=$(QUICKJS)/%.o)
	$(CLANG) --target=wasm32-wasi $(JAVASCRIPT_LDFLAGS) -o $@ $^

$(ENGINES_RESULTS)/javascript.wasm: $(QUICKJS)/engine.wasm $(JAVASCRIPT)/prelude.js \
  $(ENGINES_SOURCES)/snapshot.py
	@mkdir -p $(@D)
	$(ENGINES_PYTHON) $(ENGINES_SOURCES)/snapshot.py --prepare $(JAVASCRIPT)/prelude.js $< $@

$(QUICKJS)/quickjs.o: $(QUICKJS)/.stamp
	$(CLANG) $(JAVASCRIPT_CFLAGS) -c -o $@ $(QUICKJS)/patched/quickjs.c

$(QUICKJS)/command.o: $(JAVASCRIPT)/command.c $(QUICKJS)/.stamp
	$(CLANG) $(JAVASCRIPT_CFLAGS) -c -o $@ $<

dist/interpreters/javascript.wasm: $(QUICKJS)/command.o $(QUICKJS)/quickjs.o \
  $(QUICKJS_FILES:%=$(QUICKJS)/%.o)
	@mkdir -p $(@D)
	$(CLANG) --target=wasm32-wasi -Wl,--stack-first -Wl,-z,stack-size=1048576 -Wl,--strip-all -o $@ $^
	@chmod 644 $@

# Python: CPython. The library, which takes minutes, is built again only when the steps themselves
# change; the modules of the prelude are linked to it in seconds.

CPYTHON := $(ENGINES_CACHE)/python
PYTHON_ENGINE := $(ENGINES_SOURCES)/python

$(CPYTHON)/.stamp: $(PYTHON_ENGINE)/build.sh $(PYTHON_ENGINE)/cpython.patch $(PYTHON_ENGINE)/Setup.local
	@echo "building CPython for WASI: this takes minutes, once"
	CLANG=$(CLANG) $(PYTHON_ENGINE)/build.sh library $(CPYTHON)
	@touch $@

$(ENGINES_RESULTS)/python.wasm: $(CPYTHON)/.stamp $(PYTHON_ENGINE)/main.c \
  $(PYTHON_ENGINE)/freeze.py $(wildcard $(PYTHON_ENGINE)/prelude/*.py)
	CLANG=$(CLANG) $(PYTHON_ENGINE)/build.sh engine $(CPYTHON) $@

dist/interpreters/python.wasm: $(CPYTHON)/.stamp $(PYTHON_ENGINE)/command.c $(PYTHON_ENGINE)/freeze.py
	CLANG=$(CLANG) $(PYTHON_ENGINE)/build.sh command $(CPYTHON) $@
