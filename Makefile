# Everything runs in its own virtual environment, .venv, created on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT := Who is Buzz Aldrin?
PYTEST_FLAGS ?= -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo bench bench-gpu bench-gpu-compiled bench-gpu-kernels test fuzz test-oldest test-newest test-quick quality format schema docs clean

help: ## Show what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cascli needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Create the virtual environment and install cascli with pinned dependencies

demo: install ## Fetch the embedded pair (1.6 GB, once) and compare all strategies on it
	$(BIN)/cascli pull
	$(BIN)/cascli compare "$(PROMPT)" --max-new-tokens 48

bench: install ## Benchmark cascli against transformers on the embedded pair (at most 10 minutes on 2 cores)
	$(BIN)/cascli pull
	$(BIN)/python -m benchmarks.compare_engines --prompts 4 --max-new-tokens 48 -k 4

bench-gpu: ## Measure pairs at real shapes on a GPU and run the GPU tests (at most 9 minutes; uses PYTHON as is)
	$(PYTHON) -m benchmarks.gpu -o benchmarks/results/gpu.json

bench-gpu-compiled: ## Add the same pairs with compiled steps to the results of bench-gpu (at most 9 minutes)
	$(PYTHON) -m benchmarks.gpu --only-compiled --no-tests --add -o benchmarks/results/gpu.json

bench-gpu-kernels: ## Time each kernel of a step on a GPU next to the bytes it reads (about a minute; uses PYTHON as is)
	$(PYTHON) -m benchmarks.gpu_kernels -o benchmarks/results/kernels.json

test: install ## Run the whole test suite (fetches 98 MB of weights once)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

FUZZ_SECONDS ?= 1200
fuzz: install ## Feed mutated files to every reader for twenty minutes (FUZZ_SECONDS); failures are saved to fuzz-failures/
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $$(date +%s) --save fuzz-failures

test-oldest: ## Run the whole test suite on the oldest supported torch and transformers (downloads gigabytes)
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	.venv-oldest/bin/python -m pytest $(PYTEST_FLAGS)

test-newest: ## Run the whole test suite on what a plain `pip install` takes today (downloads gigabytes)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-newest/bin/python -m pytest $(PYTEST_FLAGS)

test-quick: install ## Run the fast tests that need no weights
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not slow and not weights"

quality: install ## Check style, types, layers, and that generated files are up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.schema --check
	$(BIN)/python -m benchmarks.report --check
	$(BIN)/python -m benchmarks.picture --check
	$(BIN)/python -m tests.reference_page --check
	$(BIN)/python -m tests.files_page --check

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## Regenerate the generated parts of docs/: test tables (runs the tests) and results, command reference, picture
	$(BIN)/python -m tests.matrix
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m tests.reference_page
	$(BIN)/python -m tests.files_page
	$(BIN)/python -m benchmarks.picture

schema: install ## Write the JSON Schemas of pair and sweep files
	$(BIN)/python -m tests.schema

clean: ## Remove the virtual environment and tool caches (weights stay in the user's cache)
	rm -rf $(VENV) .venv-newest .venv-oldest .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist
