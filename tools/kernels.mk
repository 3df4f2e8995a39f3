# Proofs of the Triton kernels on a machine without a GPU. The interpreter and the compiler cannot share a process.
# Compilations are cached in .cache/triton: keep it between CI runs.

KERNEL_TESTS := tests/ops/triton
KERNEL_ENV := PYTHONPATH=.:gateway:kernels OMP_NUM_THREADS=1
KERNEL_COMPILE := $(KERNEL_ENV) TRITON_CACHE_DIR=$(CURDIR)/.cache/triton
EVERYTHING := -m "not gpu" --timeout 1200

.PHONY: kernels kernels-interpret kernels-compile kernels-full kernels-table kernels-roofline kernels-gpu

# Both lanes, at the same time where there are cores for it.
kernels: $(VENV)/.dev.stamp
	@$(MAKE) --no-print-directory -j2 kernels-interpret kernels-compile

kernels-interpret: $(VENV)/.dev.stamp
	$(KERNEL_ENV) TRITON_INTERPRET=1 $(BIN)/python -m pytest $(KERNEL_TESTS)/interpret -q

kernels-compile: $(VENV)/.dev.stamp
	$(KERNEL_COMPILE) INFERD_KERNEL_LANE=compile $(BIN)/python -m pytest $(KERNEL_TESTS)/compile -q

kernels-full: $(VENV)/.dev.stamp
	$(KERNEL_ENV) TRITON_INTERPRET=1 $(BIN)/python -m pytest $(KERNEL_TESTS)/interpret -q $(EVERYTHING)
	$(KERNEL_COMPILE) INFERD_KERNEL_LANE=compile $(BIN)/python -m pytest $(KERNEL_TESTS)/compile -q $(EVERYTHING)

# Record new numbers after a change that is meant.
kernels-table: $(VENV)/.dev.stamp
	$(KERNEL_COMPILE) $(BIN)/python tools/kernel_report.py --write

kernels-roofline: $(VENV)/.dev.stamp
	$(KERNEL_ENV) $(BIN)/python tools/roofline.py

# On a machine with a GPU: numerics, invariance, graphs, the engine, time against the model; then what only the sanitizer
# sees: addresses, races in shared memory, reads of memory nobody wrote; then a page of timings.
kernels-gpu: $(VENV)/.dev.stamp
	$(KERNEL_ENV) $(BIN)/python -m pytest tests -m gpu -q --timeout 1200
	for tool in memcheck racecheck initcheck; do \
		$(KERNEL_ENV) PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(BIN)/python -m pytest $(KERNEL_TESTS)/gpu -m gpu -q -k numerics --timeout 3600 || exit 1; \
	done
	$(KERNEL_ENV) $(BIN)/python tools/gpu_report.py
