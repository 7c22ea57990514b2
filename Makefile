# make demo [CORPUS=path]   train the small model through both stages and write a report
# make app [RUN=runs/demo]  a page to draw boxes on with the mouse, in an environment of its own (.venv-app)
# make test                 lint and tests (without those marked slow or gpu)
# make test-lowest          the tests with every dependency at its lower bound, in an environment of its own (.venv-lowest)
# make test-app             the page's tests, in a real browser where Chromium is installed, in .venv-app
# make fuzz [CASES=10000]   damaged data sets, corpora and checkpoints: nothing lost, no traceback
# make bench                every speed comparison, each against its baseline
# make kills                every writing command killed at every file operation and given again, and two at once
# make language             fetches and converts SmolLM2-135M, a real language model for development, into ~/.cache/granvit
# make docs                 the documentation as a site, in site/
#
# Each target sets up .venv when pyproject.toml or constraints.txt is newer than it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# With OpenMP's default of spinning threads, one other busy process makes training on a CPU several times slower.
export OMP_WAIT_POLICY = PASSIVE
# A short spin before sleeping: on two idle cores the small model's steps are a fifth faster for it.
export GOMP_SPINCOUNT = 100000

.PHONY: demo app test test-app test-lowest lint fuzz bench kills language docs clean

demo: .venv/core.stamp
	$(BIN)/granvit demo $(if $(CORPUS),--out runs/own --corpus "$(CORPUS)",--out runs/demo)

RUN ?= runs/demo
APP := .venv-app/bin

app: .venv-app/app.stamp
	$(APP)/granvit app $(RUN)

# Two processes; the tests of a file stay together, since they share what they set up.
TESTS := -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

test: lint
	$(BIN)/python $(TESTS)

test-lowest: .venv-lowest/stamp
	.venv-lowest/bin/python $(TESTS)

test-app: .venv-app/app.stamp
	$(APP)/python -m pip install -q -c .venv-app/constraints.txt pytest playwright
	$(APP)/python -m pytest -q tests/test_app.py

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy granvit

CASES ?= 10000

fuzz: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --cases $(CASES)

bench: .venv/core.stamp
	@set -e; for file in $(filter-out %/sizes.py %/first_hour.py %/lookup.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python "$$file"; done

docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q

kills: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m kills.sweep

language: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m helpers.smollm2

clean:
	rm -rf .venv .venv-app .venv-lowest build dist site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: a pinned version can come from whichever index or wheel folder pip is pointed at (say
# the CPU builds), where an unpinned one is always the newest from PyPI with all of CUDA.
.venv/core.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -q -c constraints.txt -e .
	touch $@

# Gradio wants an older Pillow than the pinned one.
.venv-app/app.stamp: pyproject.toml constraints.txt
	test -x $(APP)/python || $(PYTHON) -m venv .venv-app
	grep -v '^pillow==' constraints.txt > .venv-app/constraints.txt
	$(APP)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(APP)/python -m pip install -q -c .venv-app/constraints.txt -e ".[app]"
	touch $@

.venv-lowest/stamp: pyproject.toml tests/lowest.py
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py dev annotate eval gguf lora > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install -q "$$(grep '^torch==' .venv-lowest/constraints.txt)"
	.venv-lowest/bin/python -m pip install -q -c .venv-lowest/constraints.txt -e ".[dev,annotate,eval,gguf,lora]"
	touch $@

.venv/dev.stamp: .venv/core.stamp
	$(PIP) install -q -c constraints.txt -e ".[dev,annotate,eval,gguf,lora,docs]"
	touch $@
