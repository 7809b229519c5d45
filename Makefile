# Cascade. `make` alone lists the targets.
#   make demo PROMPT="a blue teapot" SEED=0 OUT=demo.png
#   make weights MINUTES=10 DEVICE=cuda
# PYTHON=python3.12 chooses the interpreter the environment is made with; VENV=path where it lives.

PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python

# `=` and not `?=`: shells export names like PROMPT for their own use; only the command line may set these.
PROMPT = a blue teapot
SEED   = 0
OUT    = demo.png
MINUTES =
DEVICE  =

# The words reach the recipe through the environment, unexpanded, so quotes, dollars and backticks are just letters.
override PROMPT := $(value PROMPT)
override SEED   := $(value SEED)
override OUT    := $(value OUT)
export PROMPT SEED OUT

INSTALLED     = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev

.PHONY: help demo test slow weights lint
.DELETE_ON_ERROR:

help:
	@echo 'make demo [PROMPT="..."] [SEED=0] [OUT=demo.png]   install, draw one picture'
	@echo 'make test                                          install, run the tests (without the slow ones)'
	@echo 'make slow                                          run the slow tests'
	@echo 'make lint                                          ruff and pyright'
	@echo 'make weights MINUTES=n [DEVICE=cuda]               train the embedded default for n more minutes, export it'

demo: $(INSTALLED)
	@$(VENV)/bin/cascade generate "$$PROMPT" --seed "$$SEED" -o "$$OUT"
	@printf '\nThe picture is in %s\n' "$$OUT"

test: $(INSTALLED_DEV)
	$(PY) -m pytest -m "not slow"

slow: $(INSTALLED_DEV)
	$(PY) -m pytest -m slow

lint: $(INSTALLED_DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

weights: $(INSTALLED)
	$(if $(MINUTES),,$(error say for how long: make weights MINUTES=10 [DEVICE=cuda]))
	THP_MEM_ALLOC_ENABLE=1 $(PY) -m cascade.training.toybox --minutes $(MINUTES) $(if $(DEVICE),--device $(DEVICE))

# Stamp files: an environment is made once, and again only when what it should hold has changed.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Cascade needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. Choose another with: make PYTHON=python3.12 ..." % v[:2])'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.$(1)'
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install,)
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt
	$(call install,[dev])
	@touch $(INSTALLED) $@
