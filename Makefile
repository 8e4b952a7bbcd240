# `make demo` runs the main job, `make test` the tests; each first sets up an environment in .venv, once.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.heatbath
ARGS   ?=
OLDEST := .venv-oldest
OLDEST_TORCH := 2.13.0
OLDEST_ARGS  ?=
REFERENCES := tests/references.txt
ROOMS  := layers curvature optim solvers operators

.PHONY: demo test test-oldest quick coverage check format setup clean
.DEFAULT_GOAL := demo

demo: $(STAMP)  ## train one network three ways and compare
	$(VENV)/bin/heatbath demo $(ARGS)

test: $(STAMP)  ## every test, on two cores
	$(PYTHON) -m pytest -n 2 $(ARGS)

# On Linux a registry's torch may bring gigabytes of CUDA: OLDEST_ARGS takes pip's options, such as an index of CPU builds.
test-oldest:  ## the quick tests of layers, curvature and optimizers with the oldest torch that pyproject.toml allows
	[ -x $(OLDEST)/bin/python ] || python3 -m venv $(OLDEST)
	$(OLDEST)/bin/python -c 'import torch, sys; sys.exit(torch.__version__.split("+")[0] != "$(OLDEST_TORCH)")' 2>/dev/null \
	  || $(OLDEST)/bin/python -m pip install --quiet torch==$(OLDEST_TORCH) $(OLDEST_ARGS)
	$(OLDEST)/bin/python -m pip install --quiet -e '.[dev]'
	$(OLDEST)/bin/python -m pytest -m "not slow" tests/layers tests/curvature tests/optim $(ARGS)

quick: $(STAMP)  ## every test but the slow ones
	$(PYTHON) -m pytest -n 2 -m "not slow" $(ARGS)

coverage: $(STAMP)  ## lines and branches of the rooms that compute, by all of their tests
	$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run -m pytest -q $(ROOMS:%=tests/%) tests/test_laws.py $(ARGS)
	$(PYTHON) -m coverage combine -q
	$(PYTHON) -m coverage report -m --skip-covered --include="$$(echo $(ROOMS:%=src/heatbath/%/*) | tr ' ' ',')"

check: $(STAMP)  ## lint, format, types, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMP)  ## mend what can be mended
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(STAMP)  ## the environment alone

clean:  ## the environment and the caches away
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# An environment that is there already is kept, and so is a torch in it that is new enough.
$(STAMP): pyproject.toml $(REFERENCES)
	@if [ -x $(PYTHON) ]; then echo "using the environment in $(VENV)"; \
	elif command -v uv >/dev/null 2>&1; then uv venv --python '>=3.11' $(VENV); \
	else \
	  for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "heatbath needs Python 3.11 or newer; python3 here is: $$(python3 --version 2>&1). Install a newer one or uv." >&2; exit 1; \
	  fi; \
	  echo "making the environment $(VENV) with $$found"; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found -m venv failed: install the venv package of your system (on Debian python3-venv), or uv." >&2; exit 1; }; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "the environment in $(VENV) has $$($(PYTHON) --version); heatbath needs Python 3.11 or newer: rm -r $(VENV)" >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(PYTHON) -e '.[dev]' \
	    && uv pip install --quiet --python $(PYTHON) --no-deps -r $(REFERENCES); \
	else $(PYTHON) -m pip install --quiet -e '.[dev]' \
	    && $(PYTHON) -m pip install --quiet --no-deps -r $(REFERENCES); fi
	@touch $(STAMP)
