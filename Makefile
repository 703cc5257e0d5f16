# make demo: a breakdown of ResNet-9 on this machine.   make test: all tests.   Each sets up all it needs, in .venv.
# make gpu: GPU tests and evidence, on a machine with CUDA and its own torch (no installing, no network).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
OUT ?= runs/gpu
PERFSCOPE_DATA ?= $(wildcard $(abspath ../shared/data))
export PERFSCOPE_DATA

.PHONY: demo test bench gpu docs clean chromium

# Waiting threads sleep instead of spinning. Steps of a small conv net, median with and without: 9 to 30 % slower on an idle
# machine (5 pairs), 1.1 times faster beside one busy process (2 pairs), 3 and 9 times beside several (2 pairs)
demo: $(VENV)/.demo
	OMP_WAIT_POLICY=PASSIVE $(BIN)/perfscope breakdown --model resnet9

test: $(VENV)/.test chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.overhead

gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT)

# docs/probes, from the probes' own docstrings
docs:
	$(PYTHON) -m perfscope.docs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "setting up $(VENV): about two minutes, most of it PyTorch"
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "adding what the tests need"
	@$(PIP) -e '.[test,view]'
	@$(PIP) pyyaml huggingface_hub safetensors pillow
	@$(PIP) --no-deps timm
	@touch $@

# Debian's chromium for the tests in a real browser; where it cannot be had they are skipped and say so
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { echo "installing chromium"; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; }; } || \
	  echo "no chromium here: the browser tests will be skipped"

clean:
	rm -rf $(VENV) runs .pytest_cache build dist
