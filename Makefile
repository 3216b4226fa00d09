# `make demo` and `make test` do all the set-up they need: a virtual environment in .venv with pinned packages.
# pip's own settings (an index of your own, the index with PyTorch's CPU wheels) are honoured as always.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PYTEST ?=
# Processes that the tests run in, a file of tests in each at a time. Each takes 1 to 2 GB.
JOBS   ?= 2
TEST   = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

FUZZ_RUNS ?= 20000
FUZZ_TARGETS ?= bundle run-folder records recipe bytes library

ARM_ROOT := build/arm-root

.PHONY: help demo test test-arm arm-root fuzz lint format install install-dev install-nvcc system system-arm clean

help:
	@echo "make demo    train, compile, check and time a small doped LSTM (about 4 minutes)"
	@echo "make test    all tests        (PYTEST='-m \"not slow\"' and the like are passed on; JOBS=$(JOBS) processes)"
	@echo "make fuzz    the loaders with hostile files, FUZZ_RUNS=$(FUZZ_RUNS) for each of FUZZ_TARGETS"
	@echo "make test-arm  the tests on emulated Arm machines (sets up qemu, a cross compiler and an arm64 root)"
	@echo "make lint    ruff and mypy    make format  ruff, rewriting"
	@echo "make clean   remove what these made, the virtual environment included"

demo: install
	$(BIN)/python -m tvm_doping.bench.demo

test: install-dev
	$(TEST) $(PYTEST)

fuzz: install-dev
	@set -e; for target in $(FUZZ_TARGETS); do \
	  echo "== $$target"; $(BIN)/python -m tests.fuzz.run $$target $(FUZZ_RUNS) 2>&1 | tail -n 4; \
	done

test-arm: arm-root
	$(TEST) tests/emulated $(PYTEST)

# After it, `make test` runs these tests too.
arm-root: install-dev system-arm
	tests/emulated/root.sh $(ARM_ROOT) $(BIN)/python

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.with-bench
install-dev: $(VENV)/.with-dev
# nvcc, for the tests that compile CUDA kernels, which are skipped without one.
install-nvcc: $(VENV)/.with-nvcc

# Root on a Debian gets the packages in $need; anyone else is told the command.
INSTALL_NEED = \
	if [ -n "$$need" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$need; \
	  else \
	    echo "Missing:$$need. Install with: sudo apt-get install$$need"; exit 1; \
	  fi; \
	fi

# TVM links what it generates with g++; Debian keeps venv's ensurepip in a package of its own.
system:
	@need=""; \
	command -v g++ >/dev/null || need="$$need g++"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || need="$$need python3-venv"; \
	$(INSTALL_NEED)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, got {v}; say which: make PYTHON=python3.11 ...")'

# An emulator, and a compiler that links for it.
system-arm:
	@need=""; \
	command -v qemu-aarch64-static >/dev/null || need="$$need qemu-user-static"; \
	command -v aarch64-linux-gnu-g++ >/dev/null || need="$$need g++-aarch64-linux-gnu"; \
	$(INSTALL_NEED)

# torch first and alone: the same version as a CPU build where pip finds one, else the one with CUDA libraries
# (larger, and just as good on a machine without a GPU).
$(VENV)/.with-torch: constraints.txt | system
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	@touch $@

$(VENV)/.with-bench: $(VENV)/.with-torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e ".[bench]"
	@touch $@

$(VENV)/.with-dev: $(VENV)/.with-bench
	$(PIP) install -q -c constraints.txt -e ".[bench,train,dev]"
	@touch $@

$(VENV)/.with-nvcc: $(VENV)/.with-dev
	$(PIP) install -q -c constraints.txt -e ".[cuda]"
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info .*_cache .hypothesis
