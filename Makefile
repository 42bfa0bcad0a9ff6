# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`. Everything goes into .venv and .millionway.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# A .venv whose Python is gone (its system was upgraded) or too old is made anew.
ifneq ($(shell $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && echo usable),usable)
.PHONY: $(INSTALLED)
CLEAR := --clear
endif

.DEFAULT_GOAL := help
.PHONY: help demo up test test-compose lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## pretrain on real images through the whole service, in minutes; DATA=folder takes your own
	@$(BIN)/python -m deploy.demo $(if $(DATA),--data "$(DATA)")

up: $(INSTALLED) ## Redis, the API and a worker, until Ctrl-C
	@$(BIN)/millionway up

test: $(INSTALLED) lint ## lint, types, import contracts, and all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-compose: $(INSTALLED) ## the deployment on this machine's Docker engine, containers killed and cut off; about 12 minutes; DATA=folder
	@$(BIN)/python -m tests.compose $(if $(DATA),--data "$(DATA)")

lint: $(INSTALLED) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## bring the code into the format that lint wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what make made: .venv, caches; the runs in .millionway stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python that is new enough; PYTHON=path names another.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if command -v $$python >/dev/null && $$python -c '$(NEW_ENOUGH)'; then \
	    found=$$python; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: Python 3.11 or later is needed, and none is on the PATH: install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "installing into $(VENV) with $$($$found --version); some minutes, once"; \
	$$found -m venv $(CLEAR) $(VENV) || { \
	  echo "make: $$found cannot make $(VENV), as said above; if it has no venv, install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
	}
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[trainer,embedded,test]'
	@touch $(INSTALLED)
