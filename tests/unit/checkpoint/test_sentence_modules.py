"""sentence-transformers folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inferd.checkpoint.sentence_modules import read_sentence_modules
from inferd.errors import StartupError

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def write(folder: Path, modules: Any, pooling: dict[str, Any], **files: Any) -> Path:
    (folder / "1_Pooling").mkdir()
    contents = {"modules.json": modules, "1_Pooling/config.json": pooling}
    for name, content in (contents | {f"{name}.json": content for name, content in files.items()}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, "last"),
    ],
)
def test_pooling_modes(tmp_path: Path, pooling: dict[str, Any], kind: str) -> None:
    found = read_sentence_modules(write(tmp_path, MODULES, pooling))
    assert found is not None
    assert (found.pooling, found.normalize, found.max_tokens, dict(found.prompts)) == (kind, False, None, {})


def test_normalize_length_and_prompts(tmp_path: Path) -> None:
    found = read_sentence_modules(
        write(
            tmp_path,
            [*MODULES, NORMALIZE],
            {"pooling_mode_mean_tokens": True},
            sentence_bert_config={"max_seq_length": 256, "do_lower_case": False},
            config_sentence_transformers={"prompts": {"query": "find: "}, "default_prompt_name": None},
        )
    )
    assert found is not None
    assert (found.normalize, found.max_tokens, dict(found.prompts)) == (True, 256, {"query": "find: "})


def test_any_other_folder_has_none(tmp_path: Path) -> None:
    assert read_sentence_modules(tmp_path) is None


DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
OUTSIDE = {"idx": 1, "name": "1", "path": "../elsewhere", "type": "sentence_transformers.models.Pooling"}
MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("modules", "pooling", "files", "message"),
    [
        ([*MODULES, DENSE], MEAN, {}, "module .Dense"),
        (MODULES[:1], MEAN, {}, "no Pooling module"),
        ([MODULES[0], OUTSIDE], MEAN, {}, "leads out of the folder"),
        ([7], MEAN, {}, "module 7"),
        ({"idx": 0}, MEAN, {}, "expected a JSON list"),
        (MODULES, {"pooling_mode_max_tokens": True}, {}, "pooling_mode_max_tokens"),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, {}, "is not supported"),
        (MODULES, {}, {}, "pooling none"),
        (MODULES, MEAN | {"include_prompt": False}, {}, "include_prompt"),
        (MODULES, MEAN, {"sentence_bert_config": {"max_seq_length": 0}}, "max_seq_length is 0"),
        (MODULES, MEAN, {"config_sentence_transformers": {"prompts": {"query": 1}}}, "prompts"),
    ],
)
def test_what_is_not_built_does_not_start(
    tmp_path: Path, modules: Any, pooling: dict[str, Any], files: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        read_sentence_modules(write(tmp_path, modules, pooling, **files))
