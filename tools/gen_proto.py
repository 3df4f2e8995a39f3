"""Regenerate the checked-in stubs of inferd/v1 from proto/: `make proto`. --check fails when they differ."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(destination: Path) -> list[Path]:
    """Write the stubs of every proto file under `destination`; returns the files made."""
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}={destination}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", *includes, *outputs, *protos]) != 0:
        sys.exit("protoc failed")
    return sorted(path for path in destination.rglob("*_pb2*.py*") if path.suffix in (".py", ".pyi"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the checked-in stubs, change nothing")
    check = parser.parse_args().check
    if not check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            made.relative_to(folder)
            for made in generate(Path(folder))
            if not (ROOT / made.relative_to(folder)).exists()
            or not filecmp.cmp(made, ROOT / made.relative_to(folder), shallow=False)
        ]
    if stale:
        sys.exit("stale stubs, run `make proto`: " + ", ".join(map(str, stale)))


if __name__ == "__main__":
    main()
