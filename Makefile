# Everything is made with Python's own pip and Debian's packages. `make help` lists the targets.

PYTHON ?= python3
PREFIX ?= /usr/local
# More arguments for pytest, as in: make test PYTEST_ARGS="-k routes -x"
PYTEST_ARGS ?=
# More arguments for the bench, as in: make bench BENCH_ARGS="--only start,memory --write-docs"
BENCH_ARGS ?=
# Processes that run tests.
TEST_WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
SHIMS := spin slight wws
DISTRIBUTIONS := shared $(SHIMS:%=containerd-shim-%-v1)
BINARIES := $(SHIMS:%=dist/containerd-shim-%-v1)

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

# Sources by name, so that caches and package metadata beside them do not count.
SOURCES := $(shell find $(DISTRIBUTIONS:%=%/src) -type f \
  \( -name '*.py' -o -name '*.proto' -o -name py.typed \) -not -path '*.egg-info*')
IMAGE_SOURCES := $(shell find images -type f -not -name '*.md' -not -path '*/.*')
PYTHON_PATHS := conftest.py $(foreach directory, \
  $(wildcard shared/tools containerd-shim-wws-v1/engines $(DISTRIBUTIONS:%=%/src) $(DISTRIBUTIONS:%=%/tests)), \
  $(if $(shell find $(directory) -name '*.py' -print -quit),$(directory)))

# The .wasm files: make guests.
-include images/guests.mk
export GUESTS_PACKAGES
$(GUESTS_BUILDS): | packages-guests

# The engines of languages for wws: make engines.
-include containerd-shim-wws-v1/engines/engines.mk
$(ENGINES_STARTS): | packages-engines $(VENV)/.stamp

.PHONY: help
help:  ## say what there is to make
	@grep -hE '^[a-z_-]+:.*  ## ' $(MAKEFILE_LIST) | sort \
	  | awk -F ':.*  ## ' '{ printf "  %-15s %s\n", $$1, $$2 }'

# Setting up

.PHONY: setup
setup: $(VENV)/.stamp  ## make .venv with all dependencies at their locked versions

$(VENV)/.stamp: requirements-dev.lock $(DISTRIBUTIONS:%=%/pyproject.toml) | packages-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
	  $(foreach distribution,$(DISTRIBUTIONS),-e ./$(distribution))
	@touch $@

# What Debian has to bring; quick when it is there.
.PHONY: packages-python packages-build packages-run packages-test packages-bench packages-guests \
  packages-engines
packages-python:
	@shared/tools/packages.sh need python
packages-build: | packages-python
	@shared/tools/packages.sh need build
packages-run: | packages-python
	@$(if $(CONTAINERD_ADDRESS),true,shared/tools/packages.sh need containerd curl)
packages-test: | packages-python
	@shared/tools/packages.sh want containerd curl busybox cni uml servers deployments
	@$(if $(GUESTS_PACKAGES),shared/tools/packages.sh want guests)
packages-bench: | packages-python
	@shared/tools/packages.sh need containerd busybox wrk redis
packages-guests: | packages-python
	@shared/tools/packages.sh need guests
packages-engines: | packages-python
	@shared/tools/packages.sh need guests engines

.PHONY: lock
lock: $(VENV)/.stamp  ## choose the newest allowed versions and write the lock files
	$(PIP_COMPILE) -o requirements.lock shared/pyproject.toml
	$(PIP_COMPILE) -o requirements-dev.lock requirements-dev.in shared/pyproject.toml
	$(PIP_COMPILE) -o shared/tools/go/go.lock shared/tools/go/go.in

PIP_COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade \
  --generate-hashes --allow-unsafe --strip-extras \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# Building. BUNDLED_PYTHON=/path/to/python3 puts that Python into the binaries, not the pinned one.

.PHONY: build
build: $(BINARIES)  ## build dist/containerd-shim-{spin,slight,wws}-v1

BINARY_TOOLS := $(wildcard shared/tools/build_binary.py shared/tools/binary/*.py shared/launcher/*)
$(BINARIES): dist/containerd-shim-%-v1: \
  $(SOURCES) $(BINARY_TOOLS) requirements.lock $(VENV)/.stamp | packages-build
	$(BIN)/python shared/tools/build_binary.py $*
	@touch $@

# It carries the engines. Whoever wants another shim need not build them.
dist/containerd-shim-wws-v1: $(ENGINES)

.PHONY: install
install: $(BINARIES)  ## copy the shims to $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BINARIES) $(DESTDIR)$(PREFIX)/bin

.PHONY: images
images: dist/images/.stamp  ## write the example images as OCI archives: dist/images/NAME.tar; for wasi/wasm in dist/images/wasi

IMAGE_TOOLS := $(wildcard shared/tools/build_images.py shared/src/containerd_shimkit/oci/archive.py)
IMAGES := dist/images/spin.tar dist/images/slight.tar dist/images/wws.tar
dist/images/.stamp $(IMAGES) &: $(IMAGE_SOURCES) $(IMAGE_TOOLS) | $(VENV)/.stamp
	$(BIN)/python shared/tools/build_images.py
	$(BIN)/python shared/tools/build_images.py --wasi --output dist/images/wasi
	@touch dist/images/.stamp $(IMAGES)

.PHONY: release
release: build images  ## write dist/release: binaries, wheels, images, checksums, a bill of materials, notes
	$(BIN)/python shared/tools/release.py

.PHONY: load
load: dist/images/.stamp  ## import the images into the containerd of CONTAINERD_ADDRESS
	for image in dist/images/*.tar; do \
	  ctr --address "$${CONTAINERD_ADDRESS:-/run/containerd/containerd.sock}" \
	    --namespace "$${CONTAINERD_NAMESPACE:-default}" image import "$$image" || exit 1; \
	done

.PHONY: run_spin
run_spin: dist/containerd-shim-spin-v1 dist/images/spin.tar | packages-run  ## run the Spin hello world, or IMAGE=NAME, until Ctrl-C (PORT=80)
	@exec $(BIN)/python shared/tools/run_app.py spin testspin $(IMAGE:%=--image %)

.PHONY: run_slight
run_slight: dist/containerd-shim-slight-v1 dist/images/slight.tar | packages-run  ## run the Slight hello world, or IMAGE=NAME, until Ctrl-C (PORT=3000)
	@exec $(BIN)/python shared/tools/run_app.py slight testslight $(IMAGE:%=--image %)

.PHONY: run_wws
run_wws: dist/containerd-shim-wws-v1 dist/images/wws.tar | packages-run  ## run the wws hello world, or IMAGE=NAME, until Ctrl-C (PORT=3000)
	@exec $(BIN)/python shared/tools/run_app.py wws testwws $(IMAGE:%=--image %)

# Checking

# The containerd beside Debian's that tests run on, crictl and kustomize. Go's own cache makes a second time quick.
CONTAINERD_2 := .cache/containerd-2.4
.PHONY: containerd
containerd: $(CONTAINERD_2)/.stamp  ## build containerd 2.4, crictl and kustomize for the tests

GO_BUILD := PIP="$(CURDIR)/$(BIN)/python -m pip" shared/tools/go/build.sh

$(CONTAINERD_2)/.stamp: $(wildcard shared/tools/containerd/* shared/tools/go/*) | $(VENV)/.stamp
	$(GO_BUILD) shared/tools/containerd $(CONTAINERD_2) \
	  -tags "no_btrfs no_devmapper no_zfs no_aufs" -ldflags "-s -w"
	@touch $@

# A cluster of one node. The programs say which version they are.
KUBERNETES := .cache/kubernetes
KUBERNETES_VERSION := $(shell sed -n 's/^require k8s.io\/kubernetes //p' shared/tools/kubernetes/go.mod)
.PHONY: kubernetes
kubernetes: $(KUBERNETES)/.stamp  ## build Kubernetes for `make test-kubernetes`; it takes a quarter of an hour

$(KUBERNETES)/.stamp: $(wildcard shared/tools/kubernetes/* shared/tools/go/*) | $(VENV)/.stamp
	$(GO_BUILD) shared/tools/kubernetes $(KUBERNETES) \
	  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_VERSION)"
	@touch $@

# Docker's builder of today, which Debian's Docker does not have.
BUILDX := .cache/buildx
.PHONY: buildx
buildx: $(BUILDX)/.stamp  ## build Docker's buildx and BuildKit for the tests

$(BUILDX)/.stamp: $(wildcard shared/tools/buildx/* shared/tools/go/*) | $(VENV)/.stamp
	$(GO_BUILD) shared/tools/buildx $(BUILDX) -ldflags "-s -w"
	@touch $@

# Azure's emulator of its blob storage.
AZURITE := .cache/azurite
.PHONY: azurite
azurite: $(AZURITE)/.stamp  ## install Azurite for the tests of Azure's blobs

$(AZURITE)/.stamp: $(wildcard shared/tools/azurite/*) | packages-test
	install -D -m 644 -t $(AZURITE) $(wildcard shared/tools/azurite/*.json)
	npm ci --prefix $(AZURITE) --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Apache Kafka's broker. What Maven brings has to be what is pinned.
KAFKA := .cache/kafka
.PHONY: kafka
kafka: $(KAFKA)/.stamp  ## fetch Apache Kafka for the tests of messaging

$(KAFKA)/.stamp: $(wildcard shared/tools/kafka/*) | packages-test
	rm -rf $(KAFKA)
	mvn --batch-mode --quiet --file shared/tools/kafka/pom.xml dependency:copy-dependencies \
	  -DoutputDirectory=$(CURDIR)/$(KAFKA)/lib
	cd $(KAFKA)/lib && sha256sum --check --quiet --strict $(CURDIR)/shared/tools/kafka/sha256sums
	@touch $@

.PHONY: test
test: build images interpreters | packages-test  ## run all tests; as root, also those that need a kernel and containerd
	@$(MAKE) containerd || echo "containerd 2.4 is not there: the tests that need it are skipped" >&2
	@$(MAKE) buildx || echo "buildx is not there: the tests that need it are skipped" >&2
	@$(MAKE) azurite || echo "Azurite is not there: the tests that need it are skipped" >&2
	@$(MAKE) kafka || echo "Kafka is not there: the tests that need it are skipped" >&2
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.stamp  ## run the tests that need neither root nor containerd
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m "not root and not containerd" $(PYTEST_ARGS)

.PHONY: test-kubernetes
test-kubernetes: build images kubernetes containerd | packages-test  ## run what Kubernetes does with our pods; no part of `make test`
	$(BIN)/python -m pytest shared/tests/kubernetes $(PYTEST_ARGS)

.PHONY: soak
soak: build containerd | packages-test  ## run 200 containers, 100 pods at once, 62,000 requests of all kinds, and look for what they leave
	$(BIN)/python -m pytest -rP containerd-shim-spin-v1/tests/e2e/soak $(PYTEST_ARGS)
	$(BIN)/python -m pytest -rP containerd-shim-wws-v1/tests/e2e/soak $(PYTEST_ARGS)

# Directories of tests have the same name in each distribution, and mypy wants names that differ.
OWN_TESTS := $(filter-out shared/tests containerd-shim-spin-v1/tests,$(filter %/tests,$(PYTHON_PATHS)))

.PHONY: lint
lint: $(VENV)/.stamp  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(filter-out $(OWN_TESTS),$(PYTHON_PATHS))
	@$(foreach tests,$(OWN_TESTS),echo "mypy $(tests)"; MYPYPATH=$(dir $(tests)) \
	  $(BIN)/mypy --cache-dir .mypy_cache/$(dir $(tests)) $(tests) || exit 1;)

.PHONY: fmt
fmt: $(VENV)/.stamp  ## put the code into its format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(VENV)/.stamp  ## generate the message modules from the .proto files
	$(BIN)/python shared/tools/generate_proto.py

.PHONY: bench
bench: build images | packages-bench  ## measure the shims beside runc: tables and pictures go to dist/bench
	$(BIN)/python shared/tools/bench/run.py $(BENCH_ARGS)

.PHONY: clean
clean:  ## remove what was built; refuses while an app runs in .run
	@shared/tools/clean.sh
