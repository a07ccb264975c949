# Two commands for everybody: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check format clean

# torch and its torchvision first: with them there, nothing else pulls a CUDA build several gigabytes big.
$(BIN)/vlm-rlaif: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet $(or $(TORCH),torch==2.13.0 torchvision==0.28.0)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(BIN)/vlm-rlaif
	$(BIN)/vlm-rlaif run shapes --into demo

test: $(BIN)/vlm-rlaif
	@echo "Left out here, run by .ci/run: slow tests, the wheel, Ray, and what needs an environment of its own: vLLM, Label Studio, a browser."
	$(BIN)/python -m pytest -q -rs

check: $(BIN)/vlm-rlaif
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/vlm-rlaif
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo build dist *.egg-info
