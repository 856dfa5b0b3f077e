# Every target makes its own .venv first; nothing is needed but Python 3.11 or 3.12 and make.
#   make demo                                the whole system on an embedded default
#   make train CONFIG=configs/coco.toml      one stage of another run
#   RUN=name        another run folder       ARGS="key.sub=value ..."    more overrides
SHELL  := /bin/bash
PYTHON ?= python3
CONFIG ?= configs/demo.toml
RUN    ?=
ARGS   ?=

PY    := .venv/bin/python
READY := .venv/.ready
WITH   = --config $(CONFIG) $(if $(RUN),run.name=$(RUN)) $(ARGS)

export NO_ALBUMENTATIONS_UPDATE = 1
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo dataset clip embeddings train eval report rate dashboard retry show status cost test test-slow lint clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "error: Python 3.11 or 3.12 is needed, $(PYTHON) is %d.%d; run make with PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: CONFIG = configs/demo.toml
demo: $(READY) ## the whole system on the synthetic world, about 15 minutes on 2 idle cores
	@$(MAKE) --no-print-directory everything CONFIG=$(CONFIG)

.PHONY: everything
everything: dataset clip embeddings train eval cost

dataset: $(READY) ## download, store, score and filter image-text pairs
	$(PY) -m data build $(WITH)
	$(PY) -m data scores $(WITH)
	$(PY) -m data view --name base $(WITH)
	$(PY) -m data funnel $(WITH)

clip: $(READY) ## train the run's own CLIP, where the profile asks for one, and beside it the attribute classifier
	@$(MAKE) --no-print-directory --jobs=2 only-clip only-classifier CONFIG=$(CONFIG)

.PHONY: only-clip only-classifier
only-clip: $(READY)
	$(PY) -m training clip $(WITH)

only-classifier: $(READY)
	$(PY) -m eval classifier $(WITH)

embeddings: $(READY) ## cache frozen CLIP embeddings, score pairs, decide what is trained on
	$(PY) -m embed build $(WITH)
	$(PY) -m embed scores $(WITH)
	$(PY) -m data view --name train $(WITH)

train: $(READY) ## every model that [systems] names, side by side: prior, decoder and GLIDE baseline
	$(PY) -m training all $(WITH)

eval: $(READY) ## generated images, metrics, simulated or real ratings, report
	$(PY) -m eval generate $(WITH)
	$(PY) -m eval metrics $(WITH)
	$(PY) -m humaneval build $(WITH)
	$(PY) -m humaneval simulate $(WITH)
	$(PY) -m humaneval results $(WITH)
	$(PY) -m eval report $(WITH)

report: $(READY) ## write the report again where anything that it shows has changed
	$(PY) -m humaneval results $(WITH)
	$(PY) -m eval report $(WITH)

rate: $(READY) ## the rating page, for people
	$(PY) -m dashboards rate $(WITH)

dashboard: $(READY) ## results and report pages
	$(PY) -m dashboards results $(WITH)

retry: $(READY) ## download again what failed for a reason that may pass
	$(PY) -m data retry-failed $(WITH)

show: $(READY) ## print samples and draw a contact sheet
	$(PY) -m data show $(WITH)

status: $(READY) ## what is complete, what is stale and why, and the next command
	$(PY) -m data status $(WITH)

cost: $(READY) ## wall time, processor time and memory of every command of the run
	$(PY) -m data cost $(WITH)

test: $(READY) ## fast tests, under 8 minutes on 2 cores
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY) ## random-kill sweeps (ARGS=--sweeps=20 for more), browser, external scheduler
	$(PY) -m pytest -m slow $(ARGS)

lint: $(READY) ## ruff, mypy and the order of the rooms (import-linter)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

clean: ## remove caches (never runs/ or .venv)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
