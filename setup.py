"""Adds the compiled CPU kernels to the package where a C++ compiler is found; else the package is pure Python."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PACKAGE = Path("inferd_kernels") / "cpu"
spec = importlib.util.spec_from_file_location("native_build", Path(__file__).parent / "kernels" / PACKAGE / "build.py")
assert spec is not None
assert spec.loader is not None
native_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native_build)


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        compiler = native_build.find_compiler()
        if self.editable_mode or compiler is None:
            return  # a checkout compiles on first use
        target = Path(self.build_lib) / PACKAGE / native_build.library_name()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            native_build.compile_library(target, compiler)
        except native_build.BuildError as error:
            sys.stderr.write(f"warning: no native CPU kernels in this build: {error}\n")


class MaybeBinary(Distribution):
    def has_ext_modules(self) -> bool:
        return native_build.find_compiler() is not None


class AnyPython(bdist_wheel):
    """The library is loaded with ctypes: one wheel per platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPython}, distclass=MaybeBinary)
