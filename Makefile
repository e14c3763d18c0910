# make test      everything fast: tests, style, types (creates .venv on the first run)
# make test-all  also the slow tests: both hosts, every base format, browser, fuzzing at length
# make demo      analogies on bundled images, on the CPU; or your own: make demo A=a.png A_PRIME=a2.png B=b.png
#
# TORCH_SPEC and TORCH_PIP_ARGS choose the torch build, for example
#   make test TORCH_SPEC=torch TORCH_PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
TORCH_SPEC ?= torch==2.13.0
TORCH_PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Two processes with one thread each; a file's tests stay in one process, so that hosts are started rarely.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test test-all lint types venv clean

demo: $(VENV)/.installed-demo
	$(BIN)/python -W ignore -m training.demo show --a "$(A)" --a-prime "$(A_PRIME)" --b "$(B)"

test: venv lint types
	$(PYTEST)

test-all: venv lint types
	$(PYTEST) -m "not gpu"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pack uses relative imports above nodes/, so it is checked as the package that the host makes of this folder.
types: venv
	$(BIN)/mypy lorweb_core training
	@mkdir -p build/types && ln -sfn ../.. build/types/comfyui_lorweb
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p comfyui_lorweb.nodes

venv: $(VENV)/.installed

# A torch that already imports is kept, whatever its build: one of $(PYTHON)'s own is seen through the venv.
$(VENV)/torch.txt:
	@echo "Installing into $(VENV): minutes, and 1.3 GB or more. TORCH_SPEC and TORCH_PIP_ARGS choose the torch build."
	test -x $(BIN)/python || $(PYTHON) -m venv $(shell $(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH_PIP_ARGS) "$(TORCH_SPEC)"
	$(BIN)/python -W ignore -c "import torch; print('torch==' + torch.__version__)" > $@.new && mv $@.new $@

$(VENV)/.installed-demo: pyproject.toml $(VENV)/torch.txt
	test -e $(VENV)/.installed || $(PIP) --constraint $(VENV)/torch.txt --editable ".[train]"
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/torch.txt
	$(PIP) --constraint $(VENV)/torch.txt --editable ".[train,dev]"
	touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
