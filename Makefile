# Every target sets up .venv by itself; nothing else needs to be installed than Python >= 3.11.
PYTHON ?= python3
WORKERS ?= auto
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test check needle-model bench exactness clean

help: ## Show what there is to make.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Watch policies compress the cache of a small model, and see what it still recalls.
	@$(BIN)/kvpolicy demo

test: $(READY) ## Run the tests.
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadgroup

check: $(READY) ## Check format, style, layers and types, then run the tests.
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy --no-error-summary
	@$(MAKE) --no-print-directory test

needle-model: $(READY) ## Train the small model of the demo and the needle test anew.
	@$(BIN)/python -m benchmarks.needle_model.train

bench: $(READY) ## Time the eviction of one layer.
	@$(BIN)/python -m benchmarks.one_layer

exactness: $(READY) ## Compare evicted caches with full ones that mask what was evicted.
	@$(BIN)/python -m benchmarks.exactness

clean: ## Remove the environment and everything that tools left behind.
	@rm -rf .venv dist build kvpolicy-demo.html .benchmarks .hypothesis .mypy_cache .pytest_cache \
	    .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "kvpolicy needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11 ..."; \
	    exit 1; }
	@echo "Setting up .venv (minutes the first time, for PyTorch and transformers) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[dev]'
	@touch $@
