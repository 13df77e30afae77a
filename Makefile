# Strings together commands that the README explains one by one.
PYTHON ?= python3
PYTHON_NEXT ?= python3.12
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= runs/demo
# Compilers for TPUs and GPUs, apart from the rest: their CUDA plugin looks for a GPU whenever JAX
# starts, and says at length that there is none.
AOT = $(VENV)-aot

.PHONY: demo test test-torch test-aot test-network test-slow test-ray test-fashion-mnist test-next test-wheel fuzz stress lint \
	bench bench-tpu-static bench-gpu-static bench-crossings bench-data bench-memory bench-remat bench-probe \
	bench-retrieval bench-scaling bench-step-kernels bench-training tune gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/python -m rwkv_jax.data.prepare open_emoji --data-dir data
	$(BIN)/python train.py --config configs/emoji_cpu.py --workdir $(RUN)
	$(BIN)/python eval.py --config configs/emoji_cpu.py --checkpoint $(RUN) --out $(RUN)/restored.json

test: $(VENV)/.test
	# Neighbours share what a module sets up: a worker takes one half of the list.
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Tests that need an extra, a network, or minutes.
test-torch: $(VENV)/.torch
	$(BIN)/python -m pytest -m torch
# Programs for TPUs and GPUs through their real compilers, which need neither.
test-aot: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest -n 2 -m "aot and not slow"
test-network: $(VENV)/.test $(VENV)/.demo
	$(BIN)/python -m pytest -m network
test-slow: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest -n 2 -m slow

# Training killed thirty times, compared with a run that was not.
stress: $(VENV)/.test
	$(BIN)/python tests/training/stress.py --kills 30 --out docs/stress.md

# A real Ray on this machine; and 10,000 corrupted pictures and tars through the converter.
test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray
fuzz: $(VENV)/.test
	PYTHONPATH=.:kernels $(BIN)/python tests/data/fuzz_convert.py --count 10000

# The same tests on the next Python and JAX.
test-next:
	$(MAKE) test VENV=.venv-next PYTHON=$(PYTHON_NEXT)

# The built wheel, in an empty environment, imported from another directory.
test-wheel: $(VENV)/.test
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install -q -c constraints.txt build/wheel/*.whl
	cd / && $(CURDIR)/build/wheel/venv/bin/python $(CURDIR)/tests/wheel_check.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m rwkv_kernels.bench --out docs/wkv_bench.md
bench-tpu-static: $(AOT)/.installed
	$(AOT)/bin/python -m rwkv_kernels.bench_tpu_static --out docs/tpu_bundles.md

bench-gpu-static: $(AOT)/.installed
	$(AOT)/bin/python -m rwkv_kernels.bench_gpu_static --out docs/gpu_registers.md
	JAX_PLATFORMS=cpu PYTHONPATH=tests/kernels $(AOT)/bin/python -m hopper.count --out docs/gpu_instructions.md
bench-crossings: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m rwkv_jax.bench_crossings --out docs/crossings.md
bench-memory: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m rwkv_jax.bench_memory --out docs/memory.md
bench-remat: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m rwkv_jax.bench_remat --out docs/remat.md
bench-scaling: $(AOT)/.installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m rwkv_jax.bench_scaling --out docs/scaling.md

bench-data: $(VENV)/.bench
	$(BIN)/python -m rwkv_jax.data.bench --out docs/data_bench.md

# The linear probe beside scikit-learn, on Fashion-MNIST: apt-get install dataset-fashion-mnist.
test-fashion-mnist: $(VENV)/.test
	$(BIN)/python -m pytest -m fashion_mnist
bench-probe: $(VENV)/.test
	$(BIN)/python -m rwkv_jax.evaluation.probe.bench --out docs/probe_bench.md
# Ranks of 100,000 queries among 100,000 candidates.
bench-retrieval: $(VENV)/.test
	$(BIN)/python -m rwkv_jax.evaluation.bench_ranking --out docs/retrieval_bench.md

# On a machine with a Hopper GPU: correctness of every shape and regime, then times beside rivals,
# which live in an environment of their own.
gpu-check: $(VENV)/.cuda13 $(VENV)-rivals/.installed
	# Several at a time, since most of it is compiling: none may take all memory for itself.
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -n 8 -m gpu
	$(VENV)-rivals/bin/python kernels/rwkv_kernels/bench_gpu_torch.py --out build/gpu_rivals.json
	$(BIN)/python -m rwkv_kernels.bench_gpu --rivals build/gpu_rivals.json --out docs/gpu_bench.md
	$(BIN)/python -m rwkv_kernels.bench_beside --out docs/gpu_beside.md
# The training step of B/32, with the kernels and without.
bench-training: $(VENV)/.cuda13
	$(BIN)/python -m rwkv_jax.bench_training --out docs/training_bench.md

# Which kernels a step's time goes by, on a GPU.
bench-step-kernels: $(VENV)/.cuda13
	$(BIN)/python -m rwkv_jax.bench_step_kernels --out docs/step_kernels.md
# The quickest tile choices for this machine's GPU, into kernels/rwkv_kernels/gpu/tuned.json.
# Without a GPU: $(AOT)/bin/python -m rwkv_kernels.tune --static
tune: $(VENV)/.cuda13
	$(BIN)/python -m rwkv_kernels.tune
$(VENV)-rivals/.installed:
	mkdir -p build
	$(PYTHON) -m venv $(VENV)-rivals
	$(VENV)-rivals/bin/python -m pip install -q 'torch>=2.6' 'flash-linear-attention>=0.6,<0.7'
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# An extra is installed once, and again when the pins change.
$(VENV)/.%: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(if $(filter bench cuda13 ray torch,$*),test$(comma)$*,$*)]'
	touch $@
comma := ,
$(AOT)/.installed: setup.cfg constraints.txt
	test -x $(AOT)/bin/python || $(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install -q -c constraints.txt -e '.[test,aot]'
	touch $@
