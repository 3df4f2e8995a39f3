"""Lanes. The interpreter and the compiler cannot share a process, so each lane is a pytest run of its own:

TRITON_INTERPRET=1 collects interpret/, INFERD_KERNEL_LANE=compile collects compile/. A plain run collects neither;
gpu/ is collected always and deselected by its marker. `make kernels` runs both lanes.
"""

import os

collect_ignore = []
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore.append("interpret")
if os.environ.get("INFERD_KERNEL_LANE") != "compile":
    collect_ignore.append("compile")
