# Two commands do all the set-up: `make run` and `make test`. Both work in a virtual environment of their own, .venv.

PYTHON ?= python3
INPUT ?= samples
OUT ?= results
BIN := .venv/bin

.PHONY: run test lint types format clean

run: .venv/ready  ## The whole chain with the shipped weights, on synthetic samples or INPUT=folder
ifeq ($(INPUT),samples)
	$(BIN)/pipeline samples "$(OUT)/samples"
	$(BIN)/pipeline run "$(OUT)/samples/images" --out "$(OUT)/run"
else
# basename, because make's own notdir splits at blanks
	$(BIN)/pipeline run "$(INPUT)" --out "$(OUT)/run-$$(basename "$(INPUT)")"
endif

test: .venv/ready lint  ## Lint, format check and all tests
	$(BIN)/pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready  ## Type check
# The folders are one package when installed; mypy finds it in a tree of links.
	rm -rf .venv/src
	mkdir -p .venv/src/cxr_pipeline
	ln -s "$(CURDIR)"/pipeline/* "$(CURDIR)"/configs "$(CURDIR)"/data "$(CURDIR)"/models "$(CURDIR)"/stages .venv/src/cxr_pipeline/
	$(BIN)/mypy --package cxr_pipeline

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv results
