# `make demo` and `make test` each set up everything they need in .venv; a second run reuses it.

PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL := $(BIN)/python $(PIP)

.PHONY: demo test lint tables docs html compatibility wheel-test site-test clean

demo: .venv/demo
	$(BIN)/python -m benchmarks run rotated_digits vanilla sqinv sam bsam --seeds 0 1 2 --jobs 2 --resume --records demo
	$(BIN)/python -m benchmarks table rotated_digits --records demo
	$(BIN)/python -m benchmarks plot rotated_digits --records demo --out demo

test: .venv/test
	$(MAKE) --jobs=2 lint docs tables
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

lint: .venv/test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

tables: .venv/test
	$(BIN)/python -m benchmarks table --check

docs: html
	$(BIN)/sphinx-build --quiet --nitpicky --fail-on-warning --builder doctest docs docs/_build/doctest

html: .venv/test
	$(BIN)/sphinx-build --quiet --nitpicky --fail-on-warning --builder html docs docs/_build/html

# Tests of what works with what: the page says which have passed.
compatibility: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.compatibility

# The tests in the source distribution, against the wheel, where nothing else is installed.
wheel-test: .venv/test
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(PIP) "$$(echo dist/*.whl)[test]"
	tar --extract --gzip --file dist/*.tar.gz --directory .venv-wheel --strip-components 1 --one-top-level=sdist
	cd .venv-wheel/sdist && OMP_NUM_THREADS=1 ../bin/python -m pytest --numprocesses 2 --dist worksteal --quiet tests --pyargs balanced_sam

# The built site, opened in a real browser.
site-test: .venv/site html
	$(BIN)/python -m pytest --quiet docs/test_site.py

clean:
	rm -rf .venv .venv-wheel demo dist runs docs/_build docs/generated

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Expected Python 3.11 or newer, which the pinned versions need, but got " + sys.version)'
	$(PYTHON) -m venv .venv

# The stamps are newer than what they were installed from.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[benchmarks]'
	touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/demo

.venv/site: pyproject.toml constraints.txt | .venv/test
	$(INSTALL) --editable '.[site]'
	touch $@
