"""Size limits as a check: `make budget`. The numbers and their reasons are in docs/adr/0002-size-budget.md.

Lines are physical lines. A function's branches are its if, for, while, except, boolean-operator, conditional-expression
and comprehension nodes. A class's attributes are the names its methods assign on self.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES = 600
FUNCTION_LINES = 80
KERNEL_LINES = 150  # functions that a GPU compiler takes as one
BRANCHES = 15
CLASS_LINES = 350
METHODS = 30  # the ops, an interface, are one class
ATTRIBUTES = 14
TESTING = "inferd/testing/"  # fakes hand every error on
BROAD_EXCEPTS = 5  # the top of a thread, of an RPC, of a worker

BRANCH_NODES = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.IfExp),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
IGNORE = re.compile(r"#\s*type:\s*ignore(?P<code>\[[\w, -]+\])?(?P<reason>\s+#.*\w)?")
Function = ast.FunctionDef | ast.AsyncFunctionDef


SOURCES = ("inferd", "gateway/inferd_gateway", "kernels/inferd_kernels")
GENERATED = "inferd/v1"
SUFFIXES = (".py", ".cpp", ".h")


def source_files(root: Path) -> list[Path]:
    """The product's source files below `root`, without the generated stubs."""
    return sorted(
        path
        for folder in SOURCES
        for path in (root / folder).rglob("*")
        if path.suffix in SUFFIXES and not path.is_relative_to(root / GENERATED)
    )


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def check_tree(root: Path) -> list[str]:
    """Every violation under `root`, one line each."""
    problems: list[str] = []
    broad: list[str] = []
    for path in source_files(root):
        name = str(path.relative_to(root))
        if (lines := count_lines(path)) > FILE_LINES:
            problems.append(f"{name}: {lines} lines, at most {FILE_LINES}")
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            problems += [f"{name}:{problem}" for problem in check_source(text)]
            if not name.startswith(TESTING):
                broad += [f"{name}:{line}" for line in broad_excepts(ast.parse(text))]
    if len(broad) > BROAD_EXCEPTS:
        problems.append(f"{len(broad)} `except Exception`, at most {BROAD_EXCEPTS}: {', '.join(broad)}")
    return problems


def check_source(text: str) -> Iterator[str]:
    """Violations inside one file, as `line: what`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield from check_function(node)
        elif isinstance(node, ast.ClassDef):
            yield from check_class(node)
    for number, line in enumerate(text.splitlines(), 1):
        match = IGNORE.search(line)
        if match and not (match["code"] and match["reason"]):
            yield f"{number}: `type: ignore` needs a code and a reason: # type: ignore[code]  # reason"


def check_function(node: Function) -> Iterator[str]:
    limit = KERNEL_LINES if is_kernel(node) else FUNCTION_LINES
    if (lines := length(node)) > limit:
        yield f"{node.lineno}: {node.name} has {lines} lines, at most {limit}"
    branches = sum(isinstance(child, BRANCH_NODES) for child in ast.walk(node))
    if branches > BRANCHES and not is_kernel(node):
        yield f"{node.lineno}: {node.name} has {branches} branches, at most {BRANCHES}"


def check_class(node: ast.ClassDef) -> Iterator[str]:
    inherited = dir(str) if "str" in map(ast.unparse, node.bases) else []  # a kind of string has a string's methods
    methods = [item for item in node.body if isinstance(item, Function) and item.name not in inherited]
    attributes = {
        child.attr
        for method in methods
        for child in ast.walk(method)
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
        if isinstance(child.value, ast.Name) and child.value.id == "self"
    }
    measured = ((length(node), CLASS_LINES, "lines"), (len(methods), METHODS, "methods"))
    for value, limit, what in (*measured, (len(attributes), ATTRIBUTES, "attributes")):
        if value > limit:
            yield f"{node.lineno}: class {node.name} has {value} {what}, at most {limit}"


def is_kernel(node: Function) -> bool:
    """Whether a decorator mentions `jit`: the body is compiled for the GPU as one."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def length(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def broad_excepts(tree: ast.AST) -> Iterator[int]:
    """Lines of `except Exception`, `except BaseException` and bare `except` that do not end in `raise`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
            names = [None] if node.type is None else [ast.unparse(item) for item in exception_types(node.type)]
            if {None, "Exception", "BaseException"} & set(names):
                yield node.lineno


def exception_types(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def main() -> None:
    if problems := check_tree(ROOT):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
