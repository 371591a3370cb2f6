# Everything a person runs here. `make help` lists it.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
VLA_OPT := $(VENV)/bin/vla-opt
# One process per core, whole files at a time, so that a simulation is built once per file.
PYTEST := $(PY) -m pytest -n auto --maxprocesses=4 --dist loadfile
RUN ?=

.PHONY: help install venv quickstart test test-slow bench libero-object libero-spatial libero-goal libero-10 compare compare-libero \
  compare-zo compare-rl rehearsal \
  lint format constraints clean clean-venv

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: ## make .venv with everything (does nothing while the pins are the same)
	@VENV=$(VENV) .ci/install

venv: install

quickstart: install ## demonstrations, training, evaluation, report: 20 minutes on 2 cores
	@$(VLA_OPT) quickstart --config_path=configs/quickstart.yaml $(RUN)

test: install ## the test suite (no network, no GPU, below 15 minutes on 2 cores)
	$(PYTEST) $(RUN)

test-slow: install ## the tests that take longer
	$(PYTEST) -m "slow and not gpu" $(RUN)

bench: install ## the benchmarks, one at a time: they measure time
	@set -e; for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(PY) $$bench $(RUN); done

# Hours long: they go on after the terminal is closed, and continue where they were if run again.
define in_background
@mkdir -p runs/$(1)
@if kill -0 "$$(cat runs/$(1)/pid 2>/dev/null)" 2>/dev/null; then \
  echo "runs/$(1) is already being made by process $$(cat runs/$(1)/pid)"; \
else \
  setsid nohup $(VLA_OPT) $(2) $(RUN) >> runs/$(1)/log.txt 2>&1 < /dev/null & \
  echo $$! > runs/$(1)/pid; \
  echo "started in the background"; \
fi
@echo "follow: tail -f runs/$(1)/log.txt    stop: kill $$(cat runs/$(1)/pid)"
endef

libero-object: install ## all ten LIBERO-Object tasks x 50 initial states, in the background
	$(call in_background,libero_object,quickstart --config_path=configs/libero_object.yaml)

libero-spatial: install ## all ten LIBERO-Spatial tasks x 50 initial states, in the background
	$(call in_background,libero_spatial,quickstart --config_path=configs/libero_spatial.yaml)

libero-goal: install ## nine LIBERO-Goal tasks x 50 initial states, in the background
	$(call in_background,libero_goal,quickstart --config_path=configs/libero_goal.yaml)

libero-10: install ## nine LIBERO-10 tasks x 50 initial states, in the background
	$(call in_background,libero_10,quickstart --config_path=configs/libero_10.yaml)

compare: install ## AdamW, Muon and Pion on the quickstart's data, three seeds each, in the background
	@test -d runs/quickstart/demos || { echo "it learns from the quickstart's demonstrations: make quickstart first"; exit 1; }
	$(call in_background,compare_quickstart,compare --config_path=configs/compare_quickstart.yaml)

compare-libero: install ## nine arms on tasks of LIBERO-Object and LIBERO-Spatial, five seeds, tuned rates, controls: two hours, in the background
	@test -d runs/compare_libero/demos || $(VLA_OPT) demos --suites=[libero_object,libero_spatial] --task_ids=[0,1,2] --per_task=30 --root=runs/compare_libero/demos
	$(call in_background,compare_libero,compare --config_path=configs/compare_libero.yaml)

# What zeroth-order methods and reinforcement learning begin with.
define partly_trained
@test -d runs/quickstart/demos || { echo "it learns from the quickstart's demonstrations: make quickstart first"; exit 1; }
$(VLA_OPT) train --config_path=configs/start_partly_trained.yaml
endef

compare-zo: install ## zeroth-order methods, the forward gradient and AdamW at equal forward calls, in the background
	$(call partly_trained)
	$(call in_background,zo_compare,zo compare --config_path=configs/zo_compare.yaml)

compare-rl: install ## reinforcement learning with AdamW, Muon, Pion whole and by head, three seeds: hours, in the background
	$(call partly_trained)
	$(call in_background,rl_compare,rl compare --config_path=configs/rl_compare.yaml)

rehearsal: install ## policy server, executor and a simulated FR3 over the real protocol, with report and video
	@$(PY) -m deploy.rehearsal $(RUN)

lint: install ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install ## rewrite the sources in the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

constraints: install ## write the versions of .venv into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	  $(PY) -m pip freeze --exclude-editable --exclude vla-opt | grep -v '^#' | sort -f; } > .pins
	@mv .pins constraints.txt

clean: ## remove what the tools leave behind; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis MUJOCO_LOG.TXT
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-venv: ## remove .venv
	rm -rf $(VENV)
