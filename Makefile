# Two commands do all set-up on a fresh Debian or Ubuntu with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

# A fresh Debian has no ensurepip until python3-venv is installed. A stamp, so that an unchanged pyproject.toml installs nothing twice.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(SUDO) apt-get install -y python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/medfm phantom kind=chest_xray n=2400 seed=0 masks=false out=$(DEMO)/phantom
	$(BIN)/medfm index card=phantom root=$(DEMO)/phantom out=$(DEMO)/manifest.parquet
	$(BIN)/medfm pretrain recipe=phantom_demo data.manifest=$(DEMO)/manifest.parquet out=$(DEMO)/run
	$(BIN)/medfm evaluate zero_shot model=$(DEMO)/run data.manifest=$(DEMO)/manifest.parquet data.views=[PA,AP] prompts=phantom_sides out=$(DEMO)/left_right
	$(BIN)/medfm evaluate zero_shot model=$(DEMO)/run data.manifest=$(DEMO)/manifest.parquet data.views=[PA,AP] prompts=phantom out=$(DEMO)/zero_shot

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

clean:
	rm -rf $(DEMO) runs .pytest_cache .mypy_cache .ruff_cache
