"""Command line, file, environment, defaults: which wins, and what is refused."""

from __future__ import annotations

import pytest
from inferd_gateway.log import LineFormatter
from inferd_gateway.serve import main
from inferd_gateway.settings import FIELDS, TYPES, Settings, SettingsError, check, load


def test_defaults():
    assert load([], {}) == Settings()
    assert Settings().host == "127.0.0.1"


def test_dashes_and_underscores():
    expected = Settings(max_body_bytes=7, served_model_name=("a", "b"), strict_params=True)
    assert load(["--max-body-bytes", "7", "--served-model-name", "a", "b", "--strict-params"], {}) == expected
    assert (
        load(["--max_body_bytes=7", "--served_model_name", "a", "--served-model-name=b", "--strict_params"], {})
        == expected
    )
    assert load(["--chat-template=a_b.jinja"], {}).chat_template == "a_b.jinja"


def test_precedence(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text("port: 2\nsse_keepalive: 2\napi-key: [x, y]\naccess-log: false\nbackend: a:1\n")
    env = {"INFERD_GATEWAY_PORT": "1", "INFERD_GATEWAY_REQUEST_TIMEOUT": "1.5", "INFERD_GATEWAY_SSE_KEEPALIVE": "1"}
    settings = load(["--config", str(file), "--port", "3"], env)
    assert (settings.port, settings.sse_keepalive, settings.request_timeout) == (3, 2.0, 1.5)
    assert (settings.api_key, settings.access_log, settings.backend) == (("x", "y"), False, ("a:1",))
    assert load([], {**env, "INFERD_GATEWAY_CONFIG": str(file)}).port == 2


def test_environment():
    env = {
        "INFERD_GATEWAY_API_KEY": "a, b",
        "INFERD_GATEWAY_STRICT_PARAMS": "true",
        "INFERD_GATEWAY_PORT": "tcp://10.0.0.1:8000",
    }
    settings = load([], env)
    assert (settings.api_key, settings.strict_params, settings.port) == (("a", "b"), True, 8000)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("prot: 1", "prot"),
        ("port: x", "port"),
        ("port: true", "port"),
        ("strict-params: 1", "strict-params"),
        ("uvicorn-log-level: loud", "uvicorn-log-level"),
        ("host: {a: b}", "host"),
        ("backend: {a: b}", "backend"),
        ("- port", "map"),
        ("port: [", "gateway.yaml"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, named):
    file = tmp_path / "gateway.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=named):
        load(["--config", str(file)], {})


def test_bad_environment_values():
    for name, value in {"PORT": "x", "STRICT_PARAMS": "maybe", "UVICORN_LOG_LEVEL": "loud"}.items():
        with pytest.raises(SettingsError, match=name):
            load([], {f"INFERD_GATEWAY_{name}": value})


def test_main_ends_with_one_line(capsys, tmp_path):
    for flags in (
        ["--config", "missing.yaml"],
        ["--api-key-file", "missing"],
        ["--chat-template", "missing"],
        ["--api-key", ""],
    ):
        assert main(flags) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "keys").write_text("# none\n")
    assert main(["--api-key-file", str(tmp_path / "keys")]) == 2


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit):
        load(["--prot", "1"], {})
    assert "--prot" in capsys.readouterr().err


def test_log_lines_cannot_be_forged():
    import logging

    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO", "model": "x\r\ny\x1b[0m"})
    for log_format in ("text", "json"):
        line = LineFormatter(log_format).format(record)
        assert line.isprintable()


MAY_BE_ZERO = {"port", "shutdown_timeout"}


@pytest.mark.parametrize("name", [name for name in FIELDS if TYPES[name] in (int, float)])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1" + "0" * 19, "9" * 5000])
def test_numbers_that_cannot_work_are_refused(name, value):
    if value == "0" and name in MAY_BE_ZERO:
        check(load([], {f"INFERD_GATEWAY_{name.upper()}": value}))
        return
    with pytest.raises(SettingsError, match=f"(?i){name.replace('_', '[-_]')}"):
        check(load([], {f"INFERD_GATEWAY_{name.upper()}": value}))


def test_every_number_has_bounds():
    assert all(FIELDS[name].metadata["bounds"] for name in FIELDS if TYPES[name] in (int, float))


def test_a_number_in_a_file_that_python_cannot_hold(tmp_path):
    file = tmp_path / "gateway.yaml"
    for text in ("9" * 5000, ".inf", ".nan", "2001-13-45"):
        file.write_text(f"request-timeout: {text}\n")
        with pytest.raises(SettingsError):
            check(load(["--config", str(file)], {}))
