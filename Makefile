# make setup builds .venv once; every other target does so first when needed.
# Needs git, make and some python3 (or uv). Python >= 3.12 is found, or fetched by uv.

VENV := .venv
TOOLS := .venv-tools
BIN := $(VENV)/bin
STAMP := $(VENV)/.lapilli-setup
PYTHON_RANGE := >=3.12,<3.15
WORKERS ?= 2
PYTEST ?=
SINCE ?= HEAD~1
MATRIX ?=
# What a new version is most likely to break: the wall, the mends, the table of primitives, and a few whole programs.
MATRIX_TESTS ?= -m "not slow" @.ci/matrix-tests.txt

.PHONY: help setup demo quick test test-long test-slow refusals mutants test-matrix test-bare matrix-cells lint format docs docs-outputs bench lock clean

help:
	@echo "make setup      build .venv with the locked dependencies and an editable install"
	@echo "make demo       run examples/papers/variational/demo.py"
	@echo "make quick      the fast tests of what has changed since a commit   (SINCE=HEAD~1)"
	@echo "make test       tests without long and slow ones, the pages and the examples of docstrings   (WORKERS=2 PYTEST='-k name')"
	@echo "make test-long  those that take more than half a second, and are not slow"
	@echo "make test-slow  the slow tests only"
	@echo "make refusals   all tests, and which refusals of the library none of them provokes"
	@echo "make test-matrix  a few tests with each Python, jax, oldest and newest dependencies"
	@echo "                (MATRIX='py3.13-* py3.12-jax0.11-oldest' PYTEST='tests/ppl -k name')"
	@echo "make test-bare  a plain install with the hard dependencies alone, at their oldest and newest of today"
	@echo "make mutants    break the library in some lines, one by one, and see the fast tests fail"
	@echo "make lint       ruff check, ruff format --check, pyright"
	@echo "make format     ruff: sort imports, mend what is safe to mend, format"
	@echo "make docs       build the site into out/docs, offline, warnings are errors; run its pages and docstrings"
	@echo "make docs-outputs  run the pages in full and write the outputs that they show   (PAGES=howto/hmm)"
	@echo "make bench      all benchmarks, one by one"
	@echo "make lock       resolve requirements.lock anew"
	@echo "make clean      remove caches and environments"

setup: $(STAMP)

# Sets $uv: from the path, or installed into $(TOOLS); empty if there is none.
define FIND_UV
uv=$$(command -v uv || true); \
if [ -z "$$uv" ]; then \
  [ -x $(TOOLS)/bin/uv ] \
    || { rm -rf $(TOOLS); python3 -m venv $(TOOLS) 2>/dev/null \
         && $(TOOLS)/bin/python -m pip install --quiet uv; } \
    || { rm -rf $(TOOLS); python3 -m pip install --quiet --target $(TOOLS) uv; } \
    || echo "setup: no uv, going on with pip"; \
  [ -x $(TOOLS)/bin/uv ] && uv=$(TOOLS)/bin/uv; \
fi
endef

# First choice uv; second choice pip in a plain venv.
$(STAMP): requirements.lock pyproject.toml
	@set -u; $(FIND_UV); \
	with_uv() { \
	  [ -n "$$uv" ] && echo "setup: $$($$uv --version)" \
	    && rm -rf $(VENV) && $$uv venv --quiet --python '$(PYTHON_RANGE)' $(VENV) \
	    && $$uv pip install --quiet --python $(BIN)/python -r requirements.lock \
	    && $$uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	}; \
	with_pip() { \
	  for python in python3.14 python3.13 python3.12 python3; do \
	    $$python -c 'import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 15))' 2>/dev/null \
	      && rm -rf $(VENV) && $$python -m venv $(VENV) \
	      && echo "setup: pip with $$python" \
	      && $(BIN)/python -m pip install --quiet -r requirements.lock \
	      && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . \
	      && return 0; \
	  done; \
	  echo "setup: needs Python $(PYTHON_RANGE), and found none that works" >&2; return 1; \
	}; \
	with_uv || { [ -z "$$uv" ] || echo "setup: uv failed, going on with pip"; with_pip; }
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/lapilli # for pyright: see pyproject.toml
	@$(BIN)/python -c 'import sys, lapilli as l; print("setup: lapilli", l.__version__, sys.version)'
	@touch $@

demo: setup
	$(BIN)/python examples/papers/variational/demo.py

# Compilation is most of the suite's time; the slow tests run what XLA makes at its usual level.
FAST := XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(BIN)/pytest

quick: setup
	$(FAST) -n $(WORKERS) --dist worksteal -m "not slow and not docs" --budget 240 $$($(BIN)/python .ci/quick.py $(SINCE)) $(PYTEST)

test: setup
	$(FAST) -n $(WORKERS) --dist worksteal -m "not slow and not docs" --long without $(PYTEST)

test-long: setup
	$(FAST) -n $(WORKERS) --dist worksteal -m "not slow and not docs" --long only $(PYTEST)

test-slow: setup
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m slow --durations 10 $(PYTEST)

refusals: setup
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --refusals $(PYTEST)

# Each cell has an environment of its own in .venv-matrix; the list of cells is in .ci/matrix.py.
test-matrix:
	@$(FIND_UV); \
	[ -n "$$uv" ] || { echo "test-matrix: needs uv, and it could not be installed" >&2; exit 1; }; \
	python3 .ci/matrix.py --uv "$$uv" $(foreach cell,$(MATRIX),'$(cell)') -- $(or $(PYTEST),$(MATRIX_TESTS))

test-bare:
	@$(MAKE) --no-print-directory test-matrix MATRIX='bare-*'

matrix-cells:
	@python3 .ci/matrix.py --list

mutants: setup
	$(BIN)/python .ci/mutants.py --workers $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/sphinx-build --quiet --nitpicky --fail-on-warning --keep-going -b html docs out/docs
	@echo "docs: out/docs/index.html"
	$(FAST) -n $(WORKERS) --dist worksteal -m "docs and not slow" tests/docs tests/test_doctests.py tests/test_readme.py $(PYTEST)

# Nothing is executed when the site is built: what pages show are files, which the tests of the pages write.
PAGES ?=
docs-outputs: setup
	LAPILLI_WRITE_DOCS=1 $(BIN)/pytest -n 0 tests/docs/test_pages.py -k "test_pages_run and ($(or $(PAGES),_))" $(PYTEST)

bench: setup
	@set -e; for script in benchmarks/[!_]*/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script; done

lock: setup
	uv=$$(command -v uv || echo $(TOOLS)/bin/uv); \
	$$uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --universal --upgrade \
	  --python-version 3.12 --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) $(TOOLS) .venv-matrix .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
