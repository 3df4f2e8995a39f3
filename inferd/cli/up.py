"""`inferd up MODEL`: the daemon and the gateway as two child processes with one life."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from inferd.address import bare_host, join_address
from inferd.cli.arguments import Parsed
from inferd.cli.build import build_config, check_config
from inferd.cli.flags import GATEWAY_FLAGS, SHARED_WITH_GATEWAY
from inferd.cli.supervisor import Supervisor
from inferd.cli.values import ENV_PREFIX, Raw, UsageError
from inferd.log import configure_logging
from inferd.server.keys import read_key_file
from inferd.server.scopes import INFER

LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens on every address


@dataclass(frozen=True, slots=True)
class Plan:
    """Two command lines, the environment of both, and where they will answer."""

    daemon: tuple[str, ...]
    gateway: tuple[str, ...]
    environment: Mapping[str, str]
    grpc: str
    http: str
    metrics: str | None
    api_key: str | None
    patience_s: float  # how long a child may take to stop


def run(parsed: Parsed) -> int:
    """Serve until a signal; 0 after a clean stop, 1 when a child died. Raises StartupError."""
    config = build_config(parsed)
    configure_logging(config.engine.log_level, config.engine.log_format, process="inferd up")
    check_config(config, bool(parsed.get("insecure")))
    plan = make_plan(parsed, os.environ)
    supervisor = Supervisor(plan.environment, plan.patience_s)
    return asyncio.run(supervisor.run(bring_up(plan, supervisor)))


def make_plan(parsed: Parsed, environment: Mapping[str, str]) -> Plan:
    """Split the flags between the two commands. Keys go by environment, so that no process list shows them."""
    http_port, grpc_port = int(parsed.get("port")), int(parsed.get("grpc-port"))
    if 0 in (http_port, grpc_port) or http_port == grpc_port:
        raise UsageError(f"--port {http_port} and --grpc-port {grpc_port} must be two ports other than 0")
    listening = bare_host(str(parsed.get("host")))
    host = LOOPBACK_OF.get(listening, listening)
    grpc, http = join_address(host, grpc_port), join_address(host, http_port)
    metrics_port = parsed.get("metrics-port")
    keys = infer_keys(parsed)
    own = {ENV_PREFIX + flag.name.upper().replace("-", "_") for flag in parsed.command.all_flags}
    child_environment = {name: value for name, value in environment.items() if name not in own}
    if typed := parsed.get("api-key"):
        child_environment[ENV_PREFIX + "API_KEY"] = child_environment["INFERD_GATEWAY_API_KEY"] = ",".join(typed)
    if admin := parsed.get("admin-api-key"):
        child_environment[ENV_PREFIX + "ADMIN_API_KEY"] = ",".join(admin)
    if keys:
        child_environment["INFERD_GATEWAY_BACKEND_API_KEY"] = keys[0]
    daemon, gateway = split_flags(parsed)
    python = (sys.executable, "-P", "-m")
    return Plan(
        daemon=(*python, "inferd", "serve", str(parsed.get("model")), f"--port={grpc_port}", *daemon),
        gateway=(*python, "inferd_gateway", f"--backend={grpc}", f"--port={http_port}", *gateway),
        environment=child_environment,
        grpc=grpc,
        http=f"http://{http}",
        metrics=f"http://{join_address(host, metrics_port)}/metrics" if metrics_port else None,
        api_key=keys[0] if keys else None,
        patience_s=float(parsed.get("drain-timeout")) + 15,
    )


def infer_keys(parsed: Parsed) -> list[str]:
    """The keys that the gateway may use at the daemon. Raises UsageError for a combination that `up` cannot serve."""
    if parsed.get("tls-cert"):
        raise UsageError("--tls-cert: run `inferd serve` and `inferd-gateway` apart, each has TLS options of its own")
    keys = list(parsed.get("api-key"))
    if file := parsed.get("api-key-file"):
        keys += [key for scope, key in read_key_file(file) if scope == INFER]
        if not keys:
            raise UsageError("--api-key-file: the gateway needs a key of scope infer, and the file has none")
    return keys


def split_flags(parsed: Parsed) -> tuple[list[str], list[str]]:
    """What was given, as arguments of `inferd serve` and of `inferd-gateway`."""
    daemon: list[str] = []
    gateway: list[str] = []
    for flag in parsed.command.flags:
        if flag.name not in parsed.given or flag.secret or flag.name in ("config", "port", "grpc-port"):
            continue
        value = parsed.values[flag.name] if flag.is_switch else parsed.given[flag.name].raw
        if flag in GATEWAY_FLAGS:
            gateway += as_arguments(flag.name, value)
            continue
        daemon += as_arguments(flag.name, value)
        if flag.name in SHARED_WITH_GATEWAY:
            gateway += as_arguments(SHARED_WITH_GATEWAY[flag.name], value)
    return daemon, gateway


def as_arguments(name: str, value: Raw | object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]


async def bring_up(plan: Plan, supervisor: Supervisor) -> None:
    """Start the daemon; once its port is open, the gateway; once both serve, say where."""
    from inferd.cli.example import example_call
    from inferd.cli.probe import first_model, grpc_answers, grpc_serves, model_info, until

    await supervisor.start("inferd serve", plan.daemon)
    await until(lambda: grpc_answers(plan.grpc))
    await supervisor.start("inferd-gateway", plan.gateway)
    await until(lambda: grpc_serves(plan.grpc))
    model = await until(lambda: first_model(plan.http, plan.api_key))
    path, fields = example_call(await until(lambda: model_info(plan.grpc, plan.api_key)))
    print(banner(plan, model, path, fields), flush=True)  # noqa: T201


def banner(plan: Plan, model: str, path: str, fields: Mapping[str, object]) -> str:
    """Both addresses and a line to paste, which posts `fields` to `path`. The key stays a variable."""
    body = json.dumps({"model": model, **fields})
    key = ' -H "Authorization: Bearer $INFERD_API_KEY"' if plan.api_key else ""
    lines = [
        f"{model} is served:",
        f"  OpenAI API  {plan.http}/v1",
        f"  gRPC        {plan.grpc}",
        *([f"  metrics     {plan.metrics} and {plan.http}/metrics"] if plan.metrics else []),
        "try:",
        f"  curl {plan.http}{path} -H 'Content-Type: application/json'{key} -d '{body}'",
    ]
    return "\n".join(lines)
