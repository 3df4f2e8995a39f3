"""The gateway's options: command line, then a YAML file, then INFERD_GATEWAY_* variables, then the defaults here."""

from __future__ import annotations

import argparse
import ipaddress
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

PREFIX = "INFERD_GATEWAY_"


class SettingsError(Exception):
    """An option that cannot be used; one readable line that names it."""


MAX_SECONDS = 30 * 86400.0


def option(default: Any, help_text: str, bounds: tuple[float, float] | None = None) -> Any:
    """bounds: of a number, both included."""
    return field(default=default, metadata={"help": help_text, "bounds": bounds})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every field is a long flag (--max-body-bytes), a YAML key and a variable (INFERD_GATEWAY_MAX_BODY_BYTES)."""

    backend: tuple[str, ...] = option(("127.0.0.1:50051",), "daemon address HOST:PORT or unix:PATH; repeatable")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0: the system chooses", (0, 65535))
    api_key: tuple[str, ...] = option((), "key that callers must send as a bearer token; repeatable")
    api_key_file: str | None = option(
        None, "file of keys, one a line: KEY or SCOPE:KEY, SCOPE being infer, admin or observe; '#' starts a comment"
    )
    ssl_certfile: str | None = option(None, "PEM certificate chain; HTTPS only then")
    ssl_keyfile: str | None = option(None, "PEM private key of --ssl-certfile")
    ssl_ca_certs: str | None = option(None, "PEM authority; callers must show a certificate that it signed")
    insecure: bool = option(False, "listen on a public address without a key")
    backend_api_key: str | None = option(None, "bearer token sent to the daemon")
    backend_tls: bool = option(False, "speak TLS to the daemons")
    backend_ca_certs: str | None = option(None, "PEM authority of the daemons' certificates (the system's)")
    backend_certfile: str | None = option(None, "PEM certificate chain shown to the daemons")
    backend_keyfile: str | None = option(None, "PEM private key of --backend-certfile")
    backend_admin: tuple[str, ...] = option(
        (), "BACKEND=ADMIN: where the AdminService of a daemon is, whose load is watched there; repeatable"
    )
    backend_admin_api_key: str | None = option(None, "bearer token sent to AdminService; scope observe suffices")
    chat_template: str | None = option(None, "file with the chat template to use instead of the model's")
    chat_template_content_format: Literal["auto", "string", "openai"] = option(
        "auto", "how the template wants message content: one string, or a list of parts"
    )
    enable_auto_tool_choice: bool = option(True, "accepted: tools may always be called where a parser is known")
    tool_call_parser: Literal[
        "auto", "none", "hermes", "qwen3_json", "qwen3_xml", "qwen3_coder", "llama3_json", "mistral", "pythonic",
        "deepseek_v3",
    ] = option("auto", "parser of the model's tool calls; auto: found out from its chat template")  # fmt: skip
    reasoning_parser: Literal["auto", "none", "deepseek_r1", "qwen3", "mistral"] = option(
        "auto", "splits reasoning from the answer; auto: as the daemon says"
    )
    served_model_name: tuple[str, ...] = option((), "names to serve the daemon's only model under")
    model_alias: tuple[str, ...] = option((), "ALIAS=MODEL: another name for a served model; repeatable")
    strict_params: bool = option(False, "refuse unknown body fields instead of reporting them")
    allowed_origins: tuple[str, ...] = option((), "origins that browsers may call from; '*' for any")
    max_body_bytes: int = option(4 * 2**20, "largest request body", (1, 2**31 - 1))
    request_timeout: float = option(
        600.0, "seconds one request may take, when the caller sets no limit", (0.1, MAX_SECONDS)
    )
    sse_keepalive: float = option(15.0, "seconds of silence after which a stream gets a comment", (0.01, MAX_SECONDS))
    shutdown_timeout: float = option(30.0, "seconds that running requests get after SIGTERM", (0, MAX_SECONDS))
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = option("info", "log level")
    log_format: Literal["text", "json"] = option("text", "shape of a log line")
    access_log: bool = option(True, "log one line per request")


def check(settings: Settings) -> None:
    """Refuse what cannot be meant. Raises SettingsError."""
    check_numbers(settings)
    if bool(settings.ssl_certfile) != bool(settings.ssl_keyfile):
        raise SettingsError("ssl-certfile and ssl-keyfile come together")
    if settings.ssl_ca_certs and not settings.ssl_certfile:
        raise SettingsError("ssl-ca-certs needs ssl-certfile and ssl-keyfile")
    if bool(settings.backend_certfile) != bool(settings.backend_keyfile):
        raise SettingsError("backend-certfile and backend-keyfile come together")
    if (settings.backend_ca_certs or settings.backend_certfile) and not settings.backend_tls:
        raise SettingsError("backend-ca-certs and backend-certfile need backend-tls")
    check_backends(settings)
    for alias in settings.model_alias:
        if not all(alias.partition("=")):
            raise SettingsError(f"model-alias: expected ALIAS=MODEL, got {alias!r}")
    is_guarded = settings.api_key or settings.api_key_file or settings.ssl_ca_certs or settings.insecure
    if not (is_guarded or is_loopback(settings.host)):
        raise SettingsError(
            f"host: {settings.host} is reachable from other machines: give --api-key, --api-key-file or "
            "--ssl-ca-certs, or --insecure to mean it"
        )


def check_numbers(settings: Settings) -> None:
    """Every number against its bounds, which infinity and what is no number (NaN) are outside of."""
    for item in FIELDS.values():
        if item.metadata["bounds"] is not None:
            (low, high), value = item.metadata["bounds"], getattr(settings, item.name)
            if not low <= value <= high:
                raise SettingsError(f"{item.name.replace('_', '-')}: must be {low:.10g} to {high:.10g}, got {value}")


def check_backends(settings: Settings) -> None:
    """Raises SettingsError for an address that cannot be one."""
    for target in settings.backend:
        if re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:\d+", target):
            raise SettingsError(f"backend: an IPv6 address stands in brackets, [ADDRESS]:PORT, got {target!r}")
    for pair in settings.backend_admin:
        backend, _, admin = pair.partition("=")
        if not admin or backend not in settings.backend:
            raise SettingsError(
                f"backend-admin: expected BACKEND=ADMIN with one of {', '.join(settings.backend)}, got {pair!r}"
            )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone; names but localhost count as public."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


FIELDS = {item.name: item for item in fields(Settings)}
TYPES = typing.get_type_hints(Settings)


def load(argv: Sequence[str], env: Mapping[str, str]) -> Settings:
    """Raises SettingsError; argparse itself exits for a flag it does not know."""
    flags = parse_flags(argv)
    path = flags.pop("config", None) or env.get(PREFIX + "CONFIG")
    values = from_environment(env)
    if path:
        values |= from_file(Path(path))
    return Settings(**(values | flags))


def parse_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Only the flags that were given. `--max_body_bytes` reads like `--max-body-bytes`."""
    parser = argparse.ArgumentParser("inferd-gateway", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", help="YAML file; its keys are the long flags")
    for item in FIELDS.values():
        add_flag(parser, item)
    try:
        given = vars(parser.parse_args([with_dashes(argument) for argument in argv]))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def add_flag(parser: argparse.ArgumentParser, item: Field[Any]) -> None:
    flag, kind, help_text = "--" + item.name.replace("_", "-"), TYPES[item.name], item.metadata["help"]
    help_text = f"{help_text} ({item.default})".replace("%", "%%")
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
    elif typing.get_origin(kind) is tuple:
        parser.add_argument(flag, action="extend", nargs="+", help=help_text)
    elif typing.get_origin(kind) is Literal:
        parser.add_argument(flag, choices=typing.get_args(kind), help=help_text)
    else:
        parser.add_argument(flag, type=kind if kind in (int, float) else str, help=help_text)


def with_dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Lists are comma-separated. Kubernetes injects PORT=tcp://... for a service of our name: that is no port."""
    values: dict[str, Any] = {}
    for name in FIELDS:
        text = env.get(PREFIX + name.upper())
        if text is not None and not (name == "port" and text.startswith("tcp://")):
            values[name] = parse_text(name, text, PREFIX + name.upper())
    return values


def parse_text(name: str, text: str, source: str) -> Any:
    kind = TYPES[name]
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise SettingsError(f"{source}: expected true or false, got {text!r}")
        return words[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise SettingsError(f"{source}: expected a number, got {text!r}") from None
    return check_choice(name, text, source)


def check_choice(name: str, value: Any, source: str) -> Any:
    choices = typing.get_args(TYPES[name]) if typing.get_origin(TYPES[name]) is Literal else ()
    if choices and value not in choices:
        raise SettingsError(f"{source}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def from_file(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: expected a map of long flags to values")
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in FIELDS:
            raise SettingsError(f"{path}: unknown key {key!r}")
        values[name] = from_yaml(name, value, f"{path}: {key}")
    return values


def from_yaml(name: str, value: Any, source: str) -> Any:
    kind = TYPES[name]
    if typing.get_origin(kind) is tuple:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str | int | float) for part in parts):
            raise SettingsError(f"{source}: expected a list of strings")
        return tuple(str(part) for part in parts)
    if kind is bool or isinstance(value, bool):
        if not (kind is bool and isinstance(value, bool)):
            raise SettingsError(f"{source}: got {value!r}")
        return value
    if not isinstance(value, str | int | float):
        raise SettingsError(f"{source}: expected one value, got {value!r}")
    return parse_text(name, str(value), source)
