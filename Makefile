# Two commands: `make run` serves the demo model, `make test` runs every check. Both set up .venv first, once.
# The rest is for working on the code; `make help` lists it.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo
PORT ?= 8000
GRPC_PORT ?= 50051
FLAGS ?=

# torch is the one large dependency. TORCH_SPEC is what pip is asked for, TORCH_INDEX an index to ask instead of pip's
# own: a plain `torch` is a CUDA build of several gigabytes on many machines (see README, "Setting up").
export TORCH_SPEC ?= torch==2.13.0
export TORCH_INDEX ?=

SETUP_INPUTS := pyproject.toml tools/setup.sh tools/constraints.txt $(wildcard setup.py)
PACKAGES := inferd gateway/inferd_gateway kernels/inferd_kernels tools

.DEFAULT_GOAL := help
.PHONY: help run test check setup setup-run proto docs breaking fmt lint type contracts budget test-gpu slow parallel-full bench \
        docker-lint wheel clean

help:
	@echo "make run          set up, fetch the demo model, serve it: REST on :$(PORT), gRPC on :$(GRPC_PORT)"
	@echo "                  (MODEL=... FLAGS='...' PORT=... GRPC_PORT=...)"
	@echo "make test         set up, then every check: lint, types, contract, kernels, tests"
	@echo "make setup        only set up for development"
	@echo "make proto        regenerate the stubs;        make docs         the flag tables;  make breaking     compare the contract with main's"
	@echo "make fmt          format;                      make lint type contracts budget docker-lint: one check"
	@echo "make slow         tests too long for CI;       make test-gpu     tests that need a CUDA device"
	@echo "make parallel-full    many workers, all of it (MODEL_FILE=a.gguf OTHER_MODEL_FILE=b.gguf; root for two nodes)"
	@echo "make bench        figures of a running server; make wheel        build the wheel and list it"

run: $(VENV)/.run.stamp
	@$(BIN)/inferd up $(MODEL) --port $(PORT) --grpc-port $(GRPC_PORT) $(FLAGS)

# One after the other, pytest last: its summary is the last thing printed.
test: $(VENV)/.dev.stamp
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory type
	@$(MAKE) --no-print-directory breaking
	@$(if $(wildcard tools/kernels.mk),$(MAKE) --no-print-directory kernels)
	$(BIN)/python -m pytest -q

check: test

setup: $(VENV)/.dev.stamp
setup-run: $(VENV)/.run.stamp

$(VENV)/.run.stamp: $(SETUP_INPUTS)
	@bash tools/setup.sh $(VENV) server,gateway
	@touch $@

$(VENV)/.dev.stamp: $(SETUP_INPUTS)
	@bash tools/setup.sh $(VENV) server,gateway,cuda,bench,dev
	@touch $@ $(VENV)/.run.stamp

proto: $(VENV)/.dev.stamp
	$(BIN)/python tools/gen_proto.py

docs: $(VENV)/.dev.stamp
	$(BIN)/python tools/gen_docs.py

breaking: $(VENV)/.dev.stamp
	@bash tools/buf_breaking.sh $(BIN)/buf

fmt: $(VENV)/.dev.stamp
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

lint: $(VENV)/.dev.stamp
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .

type: $(VENV)/.dev.stamp
	$(BIN)/mypy $(PACKAGES)

contracts: $(VENV)/.dev.stamp
	$(BIN)/lint-imports

budget: $(VENV)/.dev.stamp
	$(BIN)/python tools/check_budget.py

docker-lint: $(VENV)/.dev.stamp
	$(BIN)/python -m pytest -q tests/guards/test_deploy.py

test-gpu: kernels-gpu

# Every number of ranks against one process, the two nodes, memory and bubbles. Minutes; tools/two_nodes.sh needs root.
parallel-full: $(VENV)/.dev.stamp
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/parallel
	$(BIN)/python tools/measure_parallel.py load
	$(BIN)/python tools/measure_parallel.py bubble $(MODEL_FILE) --plot bubble.png
	PYTHON=$(abspath $(BIN)/python) tools/two_nodes.sh $(MODEL_FILE) $(OTHER_MODEL_FILE)
	PYTHON=$(abspath $(BIN)/python) tools/two_nodes.sh $(MODEL_FILE) $(OTHER_MODEL_FILE) --ray

slow: $(VENV)/.dev.stamp
	$(BIN)/python -m pytest -q -m slow

bench: $(VENV)/.dev.stamp
	$(BIN)/inferd bench serve $(FLAGS)

wheel: $(VENV)/.dev.stamp
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .
	$(BIN)/python -m zipfile -l dist/inferd-*.whl

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

-include tools/kernels.mk
