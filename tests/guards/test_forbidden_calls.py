"""No deserialisation that can run code, anywhere in production: the class of bug is absent, not guarded against."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = ("inferd", "gateway/inferd_gateway", "kernels/inferd_kernels", "tools")

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "multiprocessing.connection"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"recv_pyobj", "send_pyobj", "unsafe_load"}
QUALIFIED = {"torch.load", "torch.jit.load", "yaml.load", "numpy.load", "np.load", "os.system", "os.popen"}


def violations(text: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name in MODULES or name.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=module, names=names) if module:
                dotted = {module, module.split(".")[0], *(f"{module}.{name.name}" for name in names)}
                found += sorted(dotted & (MODULES | QUALIFIED))
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Call(func=ast.Attribute() as function):
                if function.attr in METHODS or ast.unparse(function) in QUALIFIED:
                    found.append(ast.unparse(function))
                found += ["shell=True" for keyword in node.keywords if is_shell(keyword)]
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=True)):
                found.append("trust_remote_code=True")
    return found


def starts_of_python(text: str) -> list[str]:
    """Commands that begin with this interpreter, without the option that keeps the working directory's files out."""
    commands = [node.elts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.List | ast.Tuple)]
    return [
        ", ".join(map(ast.unparse, words))
        for words in commands
        if words and ast.unparse(words[0]) == "sys.executable" and [*map(ast.unparse, words[1:2])] != ["'-P'"]
    ]


def is_shell(keyword: ast.keyword) -> bool:
    return keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)


def sources() -> list[Path]:
    return sorted(path for folder in PRODUCTION for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_production_never_runs_data(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path", [path for path in sources() if "tools" not in path.parts], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_python_is_started_without_the_working_directory(path: Path) -> None:
    assert starts_of_python(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", ["run([sys.executable, '-m', 'x'])", "C = (sys.executable, *words)"])
def test_the_gate_sees_a_start_of_python(source: str) -> None:
    assert starts_of_python(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from multiprocessing import connection",
        "import multiprocessing.connection as c",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "eval('1')",
        "socket.recv_pyobj()",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_gate_sees(source: str) -> None:
    assert violations(source)


def test_the_gate_lets_through_what_is_safe() -> None:
    assert violations("yaml.safe_load(t); model.eval(); re.compile('x'); subprocess.run(c, shell=False)") == []
