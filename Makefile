# Stepladder. `make help` lists the targets. Everything runs in .venv, which the first target sets up.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The first Python that is new enough; `make PYTHON=/path/to/python` names another.
PYTHON ?= $(firstword $(foreach python,python3.13 python3.12 python3.11 python3,$(shell $(python) -c \
	'import sys, ensurepip, venv; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := train,hub,demo,page,dev,docs
CODE := src tests examples benchmarks recipes docs
# One process of tests for each processor, one thread in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile
FAST := not slow
.PHONY: help setup demo test check docs format tables paths pages clean
# Of `make paths`: what the record calls the images, and further options of benchmarks/paths.py.
NAME ?= validation photos
PATHS ?=

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "error: no Python with venv of version 3.11 or newer here. Install one, or: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version) (once) ..." >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt hatchling editables
	$(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	@# On all processors. What a package holds for another version of Python cannot be compiled, and is not needed.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $(READY)

setup: $(READY)  ## Create .venv with everything that the other targets need

demo: $(READY)  ## Reconstruct photographs; print speed and quality, write a comparison picture
	@$(BIN)/python examples/demo.py --out build/demo

test: $(READY)  ## Run all but the long tests: with annotated types and shapes checked, then those that cannot be
	$(PYTEST) -m "$(FAST)" --typecheck --durations=10
	$(PYTEST) -m "$(FAST) and untyped" -q $$(grep -rl --include="*.py" "mark.untyped" tests)

check: docs  ## Lint, formatting, types, import layers, generated tables and pages, the documentation site
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python benchmarks/plots.py --check
	$(BIN)/python benchmarks/bulk_scale.py --check
	$(BIN)/python docs/generated.py --check
	$(BIN)/python docs/figures.py --check

docs: $(READY)  ## Build the documentation site into build/site; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Documentation: build/site/index.html"

format: $(READY)  ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

tables: $(READY)  ## Write the tables and plots of README.md and docs/ from benchmarks/results
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/bulk_scale.py

paths: $(READY)  ## Record every path of a decode on an idle machine (half an hour): make paths IMAGES=FOLDER
	@test -d "$(IMAGES)" || { echo "error: no folder of images. Pass one: make paths IMAGES=FOLDER" >&2; exit 2; }
	$(BIN)/stepladder export onnx photo@1 --out build/photo-onnx --force
	$(BIN)/stepladder export openvino photo@1 --out build/photo-openvino --force
	$(BIN)/stepladder export openvino photo@1 --out build/photo-int8 --int8 "$(IMAGES)" --force
	$(BIN)/python benchmarks/record.py paths --force --command paths --data-name "$(NAME)" -- "$(IMAGES)" \
	  --export build/photo-onnx --export build/photo-openvino --export build/photo-int8 --against tiny \
	  --compile --size 256 --size 512 --size 1024 $(PATHS)
	$(MAKE) tables

pages: $(READY)  ## Write what docs/ takes from programs: the help of the commands, the toy, the pictures of the concepts
	$(BIN)/python docs/generated.py
	$(BIN)/python docs/figures.py

clean:  ## Remove .venv, caches and what the targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
