# Each command makes what it needs; a Python of 3.11 or newer is all they ask. CONTRIBUTING.md says when to use which.
#
#   PYTHON=python3.12   the interpreter to build on (default: python3)
#   ARGS="…"            more arguments for `roomcast dev`, pytest (`make one`), `tox run-parallel` or the benchmarks
#   T=tests/…           what `make one` runs

PYTHON ?= python3
ARGS ?=
T ?=

VENV := .venv
TOX_VENV := .venv-tox
JS := tests/acceptance/js
CDK := deploy/cdk
# The versions that the linter and the type checker are pinned to.
PINS := $(shell grep -oE '(ruff|mypy)==[0-9.]+' tox.ini)
# Unit tests run in so many processes: more than the machine has cores is no use.
WORKERS := 2

.DEFAULT_GOAL := help
.PHONY: help run dev one check test bench bench-short docs format clean named python js

help:
	@echo 'make run     start roomcast on this machine: embedded AWS, two instances and the demo page'
	@echo 'make dev     everything for development into $(VENV), with this directory linked in'
	@echo 'make one     one test, or one file or directory of them: make one T=tests/unit/test_rates.py'
	@echo 'make check   lint, format, types and unit tests: before each commit'
	@echo 'make test    everything that must hold: tests under every Python ≥ 3.11 here, lint, types, template'
	@echo 'make bench   measure against floors and peers, and write docs/benchmarks.md; make bench-short: what got worse'
	@echo 'make docs    build the documentation into site/: open site/index.html'
	@echo 'make format  repair format and what the linter can repair'
	@echo 'make clean   remove what the others made'
	@echo
	@echo 'PYTHON=python3.12 picks the interpreter; ARGS="--port 9000" passes arguments on.'

# exec: Ctrl-C reaches roomcast as one signal, and make waits until it has stopped everything.
run: $(VENV)/.installed
	@exec $(VENV)/bin/roomcast dev $(ARGS)

dev: $(VENV)/.everything
	@echo 'Ready: . $(VENV)/bin/activate, or make one T=tests/unit/test_rates.py'

# Neither several processes nor a cache of results: one test has begun before they are there.
one: named $(VENV)/.everything
	@$(VENV)/bin/pytest -p no:xdist -p no:cacheprovider -q $(ARGS) '$(T)'

# One step after the other, each with the time it took; the first that fails ends it.
check: $(VENV)/.everything
	@all=$$(date +%s); \
	step() { \
	  echo "==> $$*"; begin=$$(date +%s); \
	  "$$@" || { echo "==> FAILED after $$(($$(date +%s) - begin)) s: $$*" >&2; exit 1; }; \
	  echo "    $$(($$(date +%s) - begin)) s"; \
	}; \
	step $(VENV)/bin/ruff check --quiet; \
	step $(VENV)/bin/ruff format --check --quiet; \
	step $(VENV)/bin/mypy; \
	step $(VENV)/bin/pytest -q -n $(WORKERS) --hypothesis-profile=brief tests/unit; \
	echo "All is well after $$(($$(date +%s) - all)) s. make test has the rest: other interpreters, processes, AWS."

# tox knows the interpreters that the PATH leads to. pyenv's commands lead to the chosen version only, so those of
# all its versions are put before them, for tox alone. tox also passes when it has skipped every interpreter; so
# one that is newer than those of tox.ini is tried as well.
test: $(TOX_VENV)/.installed js
	@if command -v pyenv >/dev/null 2>&1; then \
	  for version in $$(pyenv versions --bare | grep -E '^3\.(1[1-9]|[2-9][0-9])\.[0-9]+$$'); do \
	    PATH="$$(pyenv prefix $$version)/bin:$$PATH"; \
	  done; \
	  export PATH; \
	fi; \
	own=$$($(TOX_VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	known=; \
	for version in 3.11 3.12 3.13; do \
	  if [ $$version = $$own ] || python$$version -c '' >/dev/null 2>&1; then \
	    echo "Python $$version: here"; known=yes; \
	  else \
	    echo "Python $$version: not here, its tests are skipped"; \
	  fi; \
	done; \
	echo 'Independent environments run beside each other; each is named when it is done, with its output if it failed.'; \
	$(TOX_VENV)/bin/tox run-parallel $(ARGS) || exit $$?; \
	if [ -z "$$known" ]; then \
	  echo "None of these is here: testing with Python $$own"; \
	  exec $(TOX_VENV)/bin/tox run -e py; \
	fi

# Alone: beside other work figures are worth nothing.
bench bench-short: $(TOX_VENV)/.installed
	@$(TOX_VENV)/bin/tox run -q -e $@ $(if $(ARGS),-- $(ARGS))

docs: $(TOX_VENV)/.installed
	@$(TOX_VENV)/bin/tox run -q -e docs
	@echo 'Open site/index.html; to search as well: $(PYTHON) -m http.server --directory site'

format: $(TOX_VENV)/.installed
	@$(TOX_VENV)/bin/tox run -q -e format

clean:
	rm -rf $(VENV) $(TOX_VENV) .tox build dist site *.egg-info .hypothesis $(JS)/node_modules $(CDK)/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage

# Before anything is installed for it.
named:
	@test -n '$(T)' || { echo 'Which? For example: make one T=tests/unit/test_rates.py' >&2; exit 2; }

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "roomcast needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>/dev/null || echo none)." >&2; \
	  echo 'Name another one: make … PYTHON=python3.12' >&2; \
	  exit 1; }

# A directory's time says nothing; the stamp is younger than what it was made from.
$(VENV)/.installed: setup.cfg pyproject.toml | python
	@echo 'Installing roomcast into $(VENV) …'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Into the same place, so what `make run` needs is there as well.
$(VENV)/.everything: setup.cfg pyproject.toml tox.ini | python
	@echo 'Installing roomcast and what its tests and tools need into $(VENV) …'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,test,otel]' $(PINS)
	@touch $@ $(VENV)/.installed

$(TOX_VENV)/.installed: Makefile | python
	@echo 'Installing tox into $(TOX_VENV) …'
	@$(PYTHON) -m venv $(TOX_VENV)
	@$(TOX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'tox>=4.22,<5'
	@touch $@

# For the tests that run under Node.js; where npm is not, or does not get them, those tests are skipped
# (or fail: ROOMCAST_REQUIRE). Of the CDK exactly what its lock file has; of the others the versions are pinned.
js:
	@npm_for() { \
	  where=$$1; shift; \
	  if [ $$where/node_modules/.installed -nt $$where/package.json ]; then :; \
	  elif ! command -v npm >/dev/null 2>&1; then echo "npm: not here, tests that run under Node.js are skipped ($$where)"; \
	  elif npm "$$@" --prefix $$where --no-audit --no-fund --ignore-scripts --loglevel=error; then \
	    touch $$where/node_modules/.installed; \
	  else echo "npm: failed, tests that run under Node.js are skipped ($$where)" >&2; fi; \
	}; \
	npm_for $(JS) install --no-package-lock; \
	npm_for $(CDK) ci
