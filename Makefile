# What a person or a CI job does with this repository. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
# PyTorch's index of CPU builds; asked only on Linux without an NVIDIA driver, and only if pip's own indexes have no such build.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# More options for pytest: make test PYTEST_ARGS="tests/rays -x"
PYTEST_ARGS ?=
# A process gets tests that stand together, so that what a file's tests share is made once.
IN_PARALLEL := -n logical --maxprocesses 8 --dist worksteal
# Where `make visdom` listens, on this machine alone.
VISDOM_PORT ?= 8097

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PIP_INSTALL := $(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_SCENES := $(VENV)/.installed-scenes

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo visdom visdom-assets test test-faults test-gpu check format docs golden scene clean

help: ## List what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
		while IFS=$$'\t' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(INSTALLED) ## Make the virtual environment .venv with the package in it (the others do so where needed)

demo: $(INSTALLED) ## Train on the embedded scene, evaluate, render a fly-around (about two minutes on two cores)
	$(BIN)/nerf_runner --config-name quickstart exp_dir=$(RUN)
	$(BIN)/nerf_visualizer exp_dir=$(RUN) n_eval_cameras=40 render_size='[128,128]' video_size='[256,256]'
	@echo
	@echo "The run is in $(RUN):"
	@echo "  metrics       $(RUN)/results_test.json (each image: results_test_images.jsonl)"
	@echo "  plot          $(RUN)/train_stats.png"
	@for video in $(RUN)/video/*.mp4; do echo "  video         $$video"; done
	@echo
	@echo "To try next (. $(BIN)/activate puts the commands on the path):"
	@echo "  nerf_runner --config-name quickstart exp_dir=runs/again seed=1"
	@echo "  nerf_runner --config-name quickstart --cfg job              # every option of it"
	@echo "  nerf_visualizer exp_dir=$(RUN) n_eval_cameras=120 render_size='[128,128]' video_size='[512,512]'"
	@echo "  BLENDER_DATASET_ROOT=/path/of/nerf_synthetic BLENDER_SINGLESEQ_CLASS=lego \\"
	@echo "    nerf_runner --config-name nerf_blender exp_dir=runs/lego  # the classic NeRF, on a GPU"

visdom: $(INSTALLED) ## Start a visdom server for live previews, on 127.0.0.1:8097 (VISDOM_PORT=N: another port)
	$(BIN)/python -m nerf_trainer.visualization.visdom_server --port $(VISDOM_PORT)

visdom-assets: $(INSTALLED) ## Put the scripts of visdom's page in place, from their site or by npm, without starting it
	$(BIN)/python -m nerf_trainer.visualization.visdom_server --files-only

test: $(INSTALLED_DEV) ## Run every test that this machine can run
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

# How much of the table of faults runs: quick, tenth or full.
FAULTS ?= full
test-faults: $(INSTALLED_DEV) ## Kill, starve and mislead runs as often as the table of faults asks (FAULTS=tenth: a tenth of it)
	NERF_TRAINER_FAULTS=$(FAULTS) $(BIN)/python -m pytest $(IN_PARALLEL) --durations=30 tests/faults $(PYTEST_ARGS)

test-gpu: $(INSTALLED_DEV) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

check: $(INSTALLED_DEV) ## Lint, formatting, types, the order of the rooms, the rules of size and idiom, links of the docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_typing_canary.py \
	  tests/faults/test_static_rules.py
	$(BIN)/mkdocs build --strict --quiet

format: $(INSTALLED_DEV) ## Rewrite the sources as ruff formats them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED_DEV) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

golden: $(INSTALLED) ## Write tests/experiment.yaml and docs/options.md anew: every option and its default
	$(BIN)/nerf_runner --cfg job > tests/experiment.yaml.new
	mv tests/experiment.yaml.new tests/experiment.yaml
	$(BIN)/python -m tests.options_page
	@git diff --stat -- tests/experiment.yaml docs/options.md

scene: $(INSTALLED_SCENES) ## Render the embedded scene anew (scenes/quickstart; takes minutes)
	$(BIN)/python scenes/render_quickstart.py

clean: ## Remove builds and caches; the environment and runs stay
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find nerf_trainer tests examples benchmarks scenes -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=/path/of/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first, so that the build fits the machine; the rest finds it installed. visdom 0.2.4, the last for Python 3.11, must
# see setuptools while it is built; without it everything but the live previews works.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes the first time ..."
	$(PIP_INSTALL) setuptools wheel
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
		echo "No NVIDIA driver here: installing the CPU build of $(TORCH)"; \
		$(PIP_INSTALL) '$(TORCH)+cpu' 2> /dev/null || \
		$(PIP_INSTALL) --extra-index-url $(TORCH_CPU_INDEX) '$(TORCH)+cpu' || \
		$(PIP_INSTALL) '$(TORCH)'; \
	else \
		$(PIP_INSTALL) '$(TORCH)'; \
	fi
	$(PIP_INSTALL) --editable .
	@$(PIP_INSTALL) --no-build-isolation visdom tornado || \
		echo "visdom could not be installed: live previews will be off"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing what checks and tests need ..."
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(INSTALLED_SCENES): $(INSTALLED)
	$(PIP_INSTALL) --editable '.[scenes]'
	@touch $@
