# Proofs of the Triton kernels on a machine without a GPU. The interpreter and the compiler cannot share a process.
# Compilations are cached in .cache/triton: keep it between CI runs.

KERNEL_TESTS ?= tests/ops/triton
KERNEL_ENV = PYTHONPATH=.:gateway:kernels OMP_NUM_THREADS=1
KERNEL_CACHE = TRITON_CACHE_DIR=$(CURDIR)/.cache/triton
EVERYTHING = -m "not gpu" --timeout 1200

.PHONY: kernels kernels-interpret kernels-compile kernels-full kernels-table kernels-roofline test-gpu

kernels: kernels-interpret kernels-compile

kernels-interpret:
	$(KERNEL_ENV) TRITON_INTERPRET=1 python -m pytest $(KERNEL_TESTS)/interpret -q

kernels-compile:
	$(KERNEL_ENV) $(KERNEL_CACHE) INFERD_KERNEL_LANE=compile python -m pytest $(KERNEL_TESTS)/compile -q

kernels-full:
	$(KERNEL_ENV) TRITON_INTERPRET=1 python -m pytest $(KERNEL_TESTS)/interpret -q $(EVERYTHING)
	$(KERNEL_ENV) $(KERNEL_CACHE) INFERD_KERNEL_LANE=compile python -m pytest $(KERNEL_TESTS)/compile -q $(EVERYTHING)

kernels-table:
	$(KERNEL_ENV) $(KERNEL_CACHE) python tools/kernel_report.py --write

kernels-roofline:
	$(KERNEL_ENV) python tools/roofline.py

test-gpu:
	$(KERNEL_ENV) python -m pytest tests -m gpu -q
	$(KERNEL_ENV) compute-sanitizer --tool memcheck --error-exitcode 1 python -m pytest $(KERNEL_TESTS)/gpu -m gpu -q -k numerics
	$(KERNEL_ENV) python tools/gpu_report.py
