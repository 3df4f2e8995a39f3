"""Lanes. The interpreter and the compiler cannot share a process, so each lane is a pytest run of its own:

TRITON_INTERPRET=1 collects interpret/, INFERD_KERNEL_LANE=compile collects compile/; a plain run collects neither.
gpu/ is collected where triton is installed, and deselected by its marker. `make kernels` runs the first two.
"""

import os
from importlib.util import find_spec

collect_ignore = []
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore.append("interpret")
if os.environ.get("INFERD_KERNEL_LANE") != "compile":
    collect_ignore.append("compile")
if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore.append("gpu")
