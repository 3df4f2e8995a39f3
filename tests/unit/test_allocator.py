"""Memory that only the start needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys

from inferd.allocator import code_mappings, drop_pages

MAPS = """\
5581c0000000-5581c0021000 rw-p 00000000 00:00 0                          [heap]
7f1000000000-7f1000200000 r-xp 00012000 08:01 1234                       /usr/lib/a name.so
7f1000200000-7f1000300000 rw-p 00212000 08:01 1234                       /usr/lib/a name.so
7f1000300000-7f1000301000 r-xp 00000000 00:00 0
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
"""


def test_only_code_of_files_can_be_dropped() -> None:
    assert list(code_mappings(MAPS)) == [(0x7F1000000000, 0x7F1000200000)]


def test_a_process_goes_on_without_the_code_of_its_start() -> None:
    code = """
import json, tokenizers
from pathlib import Path
from inferd.allocator import return_start_up_memory
def code_kb():
    lines = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines()]
    mapping, total = None, 0
    for fields in lines:
        if "-" in fields[0]:
            mapping = fields
        elif fields[0] == "Rss:" and mapping[1] == "r-xp" and mapping[-1].startswith("/"):
            total += int(fields[1])
    return total
before = code_kb()
return_start_up_memory()
print(before, code_kb(), json.loads("[1]"), tokenizers.Tokenizer(tokenizers.models.BPE()).get_vocab_size())
"""
    output = subprocess.check_output([sys.executable, "-c", code], env=os.environ, text=True).split()
    assert int(output[1]) < int(output[0])
    assert output[2:] == ["[1]", "0"]


def test_only_whole_pages_are_dropped() -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 4 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * (4 * page))
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        address = ctypes.addressof(view)
        del view
        drop_pages(address + page - 1, page + 2)
        assert memory[:page] == b"x" * page
        assert memory[page : 2 * page] == bytes(page)
        assert memory[2 * page :] == b"x" * (2 * page)
        drop_pages(address + 1, page)  # a part of two
        assert memory[:page] == b"x" * page
