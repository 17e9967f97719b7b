# Two commands do all the set-up: `make run` and `make test`. Both work in a virtual environment of their own, .venv.

PYTHON ?= python3
INPUT ?= samples
OUT ?= results
BIN := .venv/bin
# Tests that need neither TensorFlow nor a trained chain.
FAST := tests/configs tests/data tests/models/test_metrics.py tests/models/test_significance.py \
	tests/test_docs.py tests/test_imports.py tests/test_package.py

.PHONY: help run check test lint types format clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: .venv/ready  ## The whole chain with the shipped weights, on synthetic samples or INPUT=folder
ifeq ($(INPUT),samples)
	$(BIN)/pipeline samples "$(OUT)/samples"
	$(BIN)/pipeline run "$(OUT)/samples/images" --out "$(OUT)/run"
else
# basename, because make's own notdir splits at blanks
	$(BIN)/pipeline run "$(INPUT)" --out "$(OUT)/run-$$(basename "$(INPUT)")"
endif

check: .venv/ready lint types  ## Lint, types, fast tests: before each commit
	$(BIN)/pytest -n auto --dist loadfile -m "not slow and not real" $(FAST)

test: .venv/ready lint  ## Lint, format check and all tests
	$(BIN)/pytest -n auto --dist loadfile

lint: .venv/ready  ## Lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready .venv/src  ## Type check of the package
	$(BIN)/mypy --package cxr_pipeline

# The folders are one package when installed; mypy finds it in a tree of links.
.PHONY: .venv/src
.venv/src: .venv/ready
	rm -rf .venv/src
	mkdir -p .venv/src/cxr_pipeline
	ln -s "$(CURDIR)"/pipeline/* "$(CURDIR)"/configs "$(CURDIR)"/data "$(CURDIR)"/models "$(CURDIR)"/stages .venv/src/cxr_pipeline/

format: .venv/ready  ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## Remove the environment and the results
	rm -rf .venv results
