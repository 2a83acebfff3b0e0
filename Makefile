# Everything a developer does, and continuous integration too; see "make help".
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
BUILD := .build
NATIVE := $(shell find native -name '*.[ch]' 2>/dev/null)
C_SOURCES := $(filter %.c,$(NATIVE))
WARNINGS := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Werror

# How long "make fuzz" runs each target, in seconds of a processor; "make test" gives it FUZZ_SECONDS.
SECONDS := 60
FUZZ_SECONDS := 20
FUZZ_SOURCES := $(wildcard tests/fuzz/fuzz_*.c)
FUZZERS := $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/fuzz/%)
# The I/O mode of "make demo": auto, xdp, packet or tun.
IO := auto
# SECONDS is special to bash, and PYTHONPATH and friends would reach into the environment that we build.
unexport SECONDS PYTHONPATH PYTHONHOME

ROOT := $(filter 0,$(shell id -u))

.PHONY: help build test unit lab sanitize sanitize-build sanitize-test demo demo-standalone screenshots docs check bench dist bundle fuzz fuzz-node clean distclean packages

help:
	@echo 'make build     .venv with all programs and development tools; compiles the extension'
	@echo 'make demo      manager, BGP and the whole path in network namespaces, with real BIRD, nginx, curl and wrk; IO=xdp: over that mode (root)'
	@echo 'make demo-standalone  the same from files, without manager and BGP (root)'
	@echo 'make test      every test; as root with the namespace labs'
	@echo 'make unit      the fast tests, no privilege needed'
	@echo 'make sanitize  the native tests under the address and undefined-behaviour sanitizers'
	@echo 'make check     format, lint, types, C warnings, who imports whom'
	@echo 'make bench     how fast all is here, beside peers, into docs/benchmarks.md: 15 minutes; ONLY=peers: one part (root)'
	@echo 'make dist      wheel and source archive, in dist/'
	@echo 'make fuzz      random packets for SECONDS=60, or as long as you say'
	@echo 'make fuzz-node  random and mutated messages of a node to a manager, MESSAGES=10000 of each type'
	@echo 'make screenshots  the pictures of the web page in docs/images (root)'
	@echo 'make docs      docs/reference.md, every key of every configuration file, from the models'
	@echo 'make clean     removes what was built (distclean: .venv as well)'

# The environment. A stamp each for what pip installed and for the compiled extension, so that a second "make build"
# does nothing and says nothing.

build: $(BUILD)/extension
	@:

$(BUILD)/environment: pyproject.toml setup.py deploy/packages.sh deploy/python.sh
	@deploy/packages.sh --check build
	@mkdir -p $(BUILD)
	@python=$$(deploy/python.sh) && { $(PY) -c '' 2>/dev/null || { echo "creating $(VENV) with $$python"; "$$python" -m venv --clear $(VENV); }; }
	@echo 'installing the development tools and our programs into $(VENV)'
	@$(PY) -m pip install -qq --disable-pip-version-check --root-user-action=ignore --upgrade 'pip>=25.1'
	@$(PY) -m pip install -qq --disable-pip-version-check --root-user-action=ignore --group dev 'cffi>=1.17'
	@$(PY) -m pip install -qq --disable-pip-version-check --root-user-action=ignore --no-build-isolation --editable .
	@$(PY) -m compileall -q lb agent manager # as pip does with what it installs for good: each "lb" starts faster
	@touch $@

$(BUILD)/extension: $(BUILD)/environment native/api/build_extension.py $(NATIVE)
	@echo 'compiling the data plane'
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# What "make test" needs of Debian.
packages:
	@deploy/packages.sh test

# Tests. $(call pytest,options) runs them; "-ra" in pyproject.toml prints every skip with its reason.

pytest = $(PY) -m pytest --quiet
# What measures no time needs no machine for itself: a process for each core, whole files to each.
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile
SLOWEST := --durations=15 --durations-min=5

unit: build
	@$(pytest) $(SIDE_BY_SIDE) $(SLOWEST) -m 'not lab'

# tests/phases.py tells in which order.
test:
	@deploy/packages.sh $(if $(ROOT),test,fuzz)
	@$(MAKE) build
	@$(PY) -m tests.phases $(FUZZ_SECONDS)

# K=name runs those whose names have it; tests/lab/suite.py tells how they run.
lab: build
	@$(PY) -m tests.lab.suite $(if $(K),-k '$(K)')

# A copy of the sources with an extension of its own, so that the ordinary one stays as it is.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1
sanitize: sanitize-build
	@$(MAKE) sanitize-test

sanitize-build: build
	@rm -rf $(BUILD)/sanitize/{lb,agent,native,tests} && mkdir -p $(BUILD)/sanitize
	@tar -c --exclude=__pycache__ --exclude='_dataplane*' lb agent native tests setup.py pyproject.toml README.md LICENSE | tar -x -C $(BUILD)/sanitize
	@echo 'compiling the data plane with the address and undefined-behaviour sanitizers'
	@cd $(BUILD)/sanitize && VIPMUX_CFLAGS='$(SANITIZE)' LDFLAGS='-fsanitize=address,undefined' $(CURDIR)/$(PY) setup.py --quiet build_ext --inplace

sanitize-test:
	@cd $(BUILD)/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc VIPMUX_CFLAGS='$(SANITIZE)' \
	  $(CURDIR)/$(PY) -m pytest --quiet -p no:cacheprovider $(SIDE_BY_SIDE) $(SLOWEST) -m 'not lab' tests/native tests/packets

# Every parser of outside bytes has a fuzz target, tests/fuzz/fuzz_*.c: libFuzzer drives the data plane itself.  A target
# may include a source file, to reach what is static there; it is not linked a second time then.
# Looking through the whole flow table teaches libFuzzer nothing, and takes it three times as long.
FUZZ_FLAGS := -g -O1 -std=gnu11 -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -fsanitize-coverage-ignorelist=tests/fuzz/uncounted.txt -Inative
FUZZ_OBJECTS := $(C_SOURCES:native/%.c=$(BUILD)/fuzz/native/%.o)
.SECONDARY: $(FUZZ_OBJECTS)
$(BUILD)/fuzz/tools: deploy/packages.sh
	@deploy/packages.sh --check fuzz
	@mkdir -p $(@D) && touch $@

$(BUILD)/fuzz/native/%.o: native/%.c tests/fuzz/uncounted.txt $(filter %.h,$(NATIVE)) | $(BUILD)/fuzz/tools
	@mkdir -p $(@D)
	@clang $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -c $< -o $@

$(BUILD)/fuzz/%: tests/fuzz/%.c tests/fuzz/world.h tests/fuzz/expect.h $(wildcard tests/native/c/reference_mux.*) $(FUZZ_OBJECTS)
	@echo 'compiling $*'
	@clang $(FUZZ_FLAGS) -fsanitize=fuzzer $< \
	  $(filter-out $(shell sed -n 's|^#include "\(.*\)\.c"|$(BUILD)/fuzz/native/\1.o|p' $<),$(FUZZ_OBJECTS)) -lpthread -o $@

fuzz: build $(FUZZERS)
	@$(PY) -m tests.fuzz.seeds $(BUILD)/fuzz
	@echo '$(SECONDS) s of random packets each: $(notdir $(FUZZERS))'
	@printf '%s\n' $(FUZZERS) | xargs -P "$$(nproc)" -I{} tests/fuzz/run {} $(SECONDS)

# What a node may say is read in Python. The seed is another each time, and is printed: SEED=N does the same again.
fuzz-node: MESSAGES ?= 10000
fuzz-node: SEED ?= $(shell date +%s)
fuzz-node: build
	@echo '$(MESSAGES) messages of each type, SEED=$(SEED)'
	@VIPMUX_MESSAGES=$(MESSAGES) VIPMUX_SEED=$(SEED) $(PY) -m pytest --quiet -n 0 tests/manager/nodes/test_hostile_node.py

demo:
	@deploy/packages.sh demo
	@$(MAKE) build
	@deploy/as-root.sh $(PY) -m tests.lab.demo_fleet --io $(IO)

demo-standalone:
	@deploy/packages.sh demo
	@$(MAKE) build
	@deploy/as-root.sh $(PY) -m tests.lab.demo --io $(IO)

# The pictures of the web page in docs/images, anew.
screenshots:
	@deploy/packages.sh test
	@$(MAKE) build
	@deploy/as-root.sh $(PY) -m tests.lab.screenshots

# The configuration reference, from the models that read the files; tests/deploy/test_reference.py says whether it is current.
docs: build
	@$(PY) deploy/reference.py

# Static checks. clang, where it is installed, reads the same C with its own warnings, and a cross compiler that for aarch64.

check: build
	@$(PY) -m ruff format --check --quiet . || { echo 'run: $(PY) -m ruff format .'; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy
	@$(PY) -m mypy -p tests.lab
	@for compiler in gcc clang aarch64-linux-gnu-gcc; do \
	  command -v $$compiler > /dev/null || { echo "$$compiler is not installed: its warnings were not looked at"; continue; }; \
	  $$compiler -fsyntax-only -Inative $(WARNINGS) $(C_SOURCES) $(wildcard tests/lab/tools/*.c); \
	done
	@$(pytest) tests/test_imports.py
	@echo 'check: all good'

# Into docs/benchmarks.md, its plots and answers; ONLY="peers load" measures these sections alone.
bench: build
	@$(PY) -m tests.bench $(ONLY)

# The wheel is built from the source archive, so that what is missing there is seen at once.
dist: build
	@rm -rf dist
	@$(PY) -m build --no-isolation > $(BUILD)/dist.log 2>&1 || { tail -30 $(BUILD)/dist.log >&2; exit 1; }
	@ls -sh1 dist

# One archive that installs without a network: the wheel, all that it needs, units and examples.  PYTHON_VERSION=3.13 makes it
# for another Python than Debian 12's.
bundle: dist
	@$(PY) deploy/bundle.py dist/*.whl --out dist $(if $(PYTHON_VERSION),--python $(PYTHON_VERSION))

clean:
	rm -rf $(BUILD) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f lb/_dataplane.c lb/_dataplane*.so lb/_dataplane*.o
	find lb agent manager tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
