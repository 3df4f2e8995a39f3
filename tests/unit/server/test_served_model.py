from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from inferd.errors import ModelNotFound
from inferd.request import SamplingParams
from inferd.server.inference_service import seed_source
from inferd.server.served_model import configured_sampling, default_sampling, served_names
from inferd.testing.fake_daemon import fake_config, fake_model


def test_generation_config_gives_defaults() -> None:
    given = {"temperature": 0.6, "top_k": 20, "top_p": None, "do_sample": True, "eos_token_id": 3}
    defaults = default_sampling(given)

    assert defaults == {"temperature": 0.6, "top_k": 20}
    assert fake_model().sampling_defaults() == SamplingParams(top_k=40)


@pytest.mark.parametrize(
    "given", [{"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": float("nan")}, {"temperature": True}]
)
def test_nonsense_defaults_are_named_and_ignored(given: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    assert default_sampling({"top_k": 7, **given}) == {"top_k": 7}
    assert f"generation_config.json: {next(iter(given))} is" in caplog.text


def test_generation_config_none_leaves_the_checkpoints_wishes_out() -> None:
    given = {"temperature": 0.6, "top_p": 0.7}
    assert configured_sampling(fake_config(server={"generation_config": "none"}), given) == {}
    assert configured_sampling(fake_config(), {"temperature": 0.6}) == {"temperature": 0.6}


def test_a_seed_makes_the_seeds_of_requests_repeatable() -> None:
    def draws(seed: int | None) -> list[int]:
        draw = seed_source(seed)
        return [draw() for _ in range(5)]

    assert draws(7) == draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert len(set(draws(7))) == 5
    assert max(draws(7)) < 2**64


def test_names(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()

    def names(source: str, *given: str) -> tuple[str, ...]:
        config = fake_config(server={"served_model_names": given})
        model = msgspec.structs.replace(config.engine.model, source=source)
        engine = msgspec.structs.replace(config.engine, model=model)
        return served_names(msgspec.structs.replace(config, engine=engine))

    assert names(str(folder)) == ("my-model",)
    assert names("org/model") == ("org/model",)
    assert names("org/model", "a", "b") == ("a", "b")


def test_an_unknown_name_is_cut_to_size_in_the_answer() -> None:
    with pytest.raises(ModelNotFound) as raised:
        fake_model().check_name("x" * 10_000)
    assert len(raised.value.message) < 300
    fake_model().check_name("")
