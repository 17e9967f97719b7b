# Two commands do all the set-up: `make run` and `make test`. Both work in a virtual environment of their own, .venv.

PYTHON ?= python3
INPUT ?= samples
OUT ?= results
BIN := .venv/bin
# Tests that need neither TensorFlow nor a trained chain.
FAST := tests/configs tests/data tests/models/test_metrics.py tests/models/test_significance.py \
	tests/test_docs.py tests/test_imports.py tests/test_package.py

.PHONY: help run check test lint types format lock sbom demo-hospital clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

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

# What is installed is what the lock files name, byte for byte; the project itself comes last, without looking further.
.venv/ready: pyproject.toml configs/locks/dev.txt configs/locks/tools.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement configs/locks/tools.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement configs/locks/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/uv pip check --quiet --python $(BIN)/python || { echo "the lock files lack something: make lock" >&2; exit 1; }
	touch $@

# Versions and hashes for every Python and system that the project runs on; versions that are there stay where they fit.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url
lock:  ## Lock files again, after a change of pyproject.toml
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv; }
	$(LOCK) pyproject.toml --extra dev --output-file constraints.txt
	$(LOCK) pyproject.toml --extra dev --constraint constraints.txt --generate-hashes --output-file configs/locks/dev.txt
	$(LOCK) pyproject.toml --extra dicom --extra web --constraint constraints.txt --generate-hashes --output-file configs/locks/image.txt
	printf 'setuptools>=77\nuv\nwheel\n' | $(LOCK) - --generate-hashes --output-file configs/locks/tools.txt

sbom: .venv/ready  ## Bill of materials of the environment, CycloneDX: sbom.json
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(BIN)/python

demo-hospital: .venv/ready  ## Orthanc, its rule and the DICOM node on this machine, and every answer back (docs/hospital.md)
	$(BIN)/python -m tests.hospital.demo

clean:  ## Remove the environment and the results
	rm -rf .venv results sbom.json
