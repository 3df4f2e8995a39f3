"""No Python file of the working directory is run: it may be a checkpoint's folder, which comes from strangers.

An entry point calls keep_out() before it imports anything else. So this module and the entry points import only what
every interpreter has loaded by then; `from __future__` would be one more import.
"""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def keep_out() -> None:
    """Take the working directory out of the import path, of this process and of all that it starts.

    Python puts it there for `python -m` and for an empty entry of PYTHONPATH. One that PYTHONPATH names stays, and so
    does a source tree that this package is run from without having been installed.
    """
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    named = {os.path.abspath(entry) for entry in entries}
    here = os.path.abspath("")
    # What Python put there stands before the standard library; behind it the same folder belongs to the installation.
    end = sys.path.index(os.path.dirname(os.__file__))
    front, installed = [entry or here for entry in sys.path[:end]], sys.path[end:]
    if here not in (HOME, *named):
        front = [entry for entry in front if entry != here]
    if HOME in front and HOME not in (*named, *installed):
        entries.insert(0, HOME)  # for what is started from here: it does not look into the working directory
    sys.path[:] = [*front, *installed]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(entries)  # an empty value is none
