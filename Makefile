# make demo | test | test-models | test-cuda | bench | bench-peers | bench-cuda | cuda-report | lint: each makes .venv on
# first use, installs into it what it needs, and is quick the second time.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
BENCH_ARGS ?=
PEERS_ARGS ?=
CUDA_ARGS ?=

venv := .venv
bin := $(venv)/bin
torch_stamp := $(venv)/.$(subst ==,-,$(TORCH))
# Folders too: their time changes when a file comes or goes.
sources := pyproject.toml setup.py CMakeLists.txt $(shell find csrc fastcnn build_backend \
	-not -path '*/__pycache__*' -not -path 'fastcnn/lib*' -not -name _build_info.json)
cpp_sources = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-models test-cuda test-cuda-sanitizers bench bench-peers bench-cuda cuda-report lint clean
.DELETE_ON_ERROR:

demo: $(venv)/.installed-train
	$(bin)/fastcnn demo

# pytest sees the installed package, not the folder fastcnn/ here; so do the Pythons that tests start.
test: $(venv)/.installed-test
	PYTHONSAFEPATH=1 $(bin)/pytest -m "not models" $(PYTEST_ARGS)

# fastcnn.convert on all of torchvision's classifiers and on more of timm's architectures: about ten minutes.
test-models: $(venv)/.installed-test
	PYTHONSAFEPATH=1 $(bin)/pytest tests/conversion -m models $(PYTEST_ARGS)

# Ops, modules and networks on a GPU; where there is none, each test says so and is skipped.
test-cuda: $(venv)/.installed-test
	PYTHONSAFEPATH=1 $(bin)/pytest -m cuda -rs $(PYTEST_ARGS)

# The same under each tool of NVIDIA's compute-sanitizer, which comes with the CUDA toolkit: hours.
test-cuda-sanitizers: $(venv)/.installed-test
	for tool in memcheck racecheck initcheck synccheck; do \
	    PYTHONSAFEPATH=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(bin)/python -m pytest -m cuda -rs $(PYTEST_ARGS) || exit 1; \
	done

# Every layer of the networks against torch, and the report of it under docs/benchmarks/: hours. BENCH_ARGS=--targets
# measures what answers every target, in about 25 minutes; BENCH_ARGS="--batches 8 --threads 2 -k conv" narrows it too.
bench: $(venv)/.installed-bench
	status=0; PYTHONSAFEPATH=1 $(bin)/pytest benchmarks --benchmark-quiet --benchmark-json=benchmark.json $(BENCH_ARGS) \
	    || status=$$?; $(bin)/python benchmarks/report.py benchmark.json && exit $$status # a failure costs its row alone

# Inference of whole networks against torch, torch.compile, ONNX Runtime and OpenVINO, and the report of it under
# docs/benchmarks/: about four hours; PEERS_ARGS="--networks lenet,resnet18 --batches 1" narrows it.
bench-peers: $(venv)/.installed-peers
	PYTHONSAFEPATH= $(bin)/python benchmarks/bench_peers.py $(PEERS_ARGS)

# On a GPU, every layer of the networks against cuDNN and against what memory and arithmetic allow; CUDA_ARGS="--batch 8
# --kernel conv2d" narrows it.
bench-cuda: $(venv)/.installed-bench
	PYTHONSAFEPATH= $(bin)/python benchmarks/bench_cuda.py $(CUDA_ARGS)

# What nvcc makes of the kernels on every architecture: registers, spills, occupancy, instructions. Needs nvcc, no GPU.
cuda-report: $(venv)/.installed-cuda-report
	$(bin)/python benchmarks/cuda_report.py $(CUDA_ARGS)

lint: $(venv)/.installed-lint
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/clang-format --dry-run --Werror $(cpp_sources)

clean:
	rm -rf $(venv) build *.egg-info fastcnn/lib fastcnn/_build_info.json

# The package with one of its extras, compiled against the torch in .venv.
$(venv)/.installed-%: $(torch_stamp) $(sources)
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
	    { echo "The C++ compiler g++ is missing; on Debian and Ubuntu: apt install g++" >&2; exit 1; }
	$(bin)/pip install '.[$*]'
	@touch $@

$(torch_stamp):
	@command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) is missing; on Debian and Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed, but $(PYTHON) is older; choose another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(venv)
	$(bin)/pip install '$(TORCH)'
	@touch $@
