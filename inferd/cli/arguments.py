"""argv -> values, by argparse made from the flag tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from inferd.cli.flags import MODEL, Flag
from inferd.cli.values import Given, UsageError, convert, merge, nearest, spellings
from inferd.cli.vllm import NO_EFFECT, NOT_SUPPORTED


@dataclass(frozen=True, slots=True)
class Command:
    """What one subcommand accepts."""

    name: str
    summary: str
    flags: tuple[Flag, ...]
    takes_model: bool = False

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        return (*self.flags, MODEL) if self.takes_model else self.flags


@dataclass(frozen=True, slots=True)
class Parsed:
    """The values of a command: `given` as typed, `values` converted; answers to flags without effect."""

    command: Command
    given: dict[str, Given]
    values: dict[str, object]
    answers: list[str]

    def get(self, name: str) -> Any:
        """The value of a flag, or its default."""
        flag = next(flag for flag in self.command.all_flags if flag.name == name)
        return self.values.get(name, flag.value_default)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(command: Command, argv: Sequence[str]) -> Parsed:
    """Read a command's arguments, its file and the environment. Raises UsageError."""
    parser = build_parser(command)
    namespace, unknown = parser.parse_known_args([with_dashes(argument) for argument in argv])
    if unknown:
        raise UsageError(unknown_argument(unknown, command))
    typed = vars(namespace)
    named = [name for name in typed if name in NO_EFFECT]
    positional = typed.pop("MODEL", None)
    arguments = {name: Given(raw, f"--{name}") for name, raw in typed.items() if name not in NO_EFFECT}
    if positional is not None:
        arguments["model"] = Given(positional, "MODEL")
    accepted = NO_EFFECT if command.takes_model else {}
    given, ignored = merge(arguments, command.all_flags, accepted)
    flags = {flag.name: flag for flag in command.all_flags}
    values = {name: convert(flags[name], value) for name, value in given.items()}
    if command.takes_model and "model" not in values:
        raise UsageError("MODEL is missing: give it before flags that take a list, or with --model")
    answers = [f"--{name} has no effect: {NO_EFFECT[name].answer}" for name in dict.fromkeys(named + ignored)]
    return Parsed(command, given, values, answers)


def with_dashes(argument: str) -> str:
    """--max_num_seqs=5 -> --max-num-seqs=5."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def build_parser(command: Command) -> Parser:
    parser = Parser(
        prog=f"inferd {command.name}",
        usage=f"inferd {command.name} {'MODEL ' if command.takes_model else ''}[flags]",
        description=command.summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="Every flag is also read from the environment as INFERD_<FLAG> and from --config FILE.yaml.",
    )
    if command.takes_model:
        parser.add_argument("MODEL", nargs="?", help=MODEL.help)
    for flag in command.all_flags:
        add_flag(parser, flag)
    if command.takes_model:
        group = parser.add_argument_group("accepted for users of `vllm serve`, without effect")
        for name, entry in NO_EFFECT.items():
            nargs: dict[str, Any] = {"metavar": "X"} if entry.takes_value else {"action": "store_true"}
            group.add_argument(f"--{name}", dest=name, help=entry.answer, **nargs)
    return parser


def add_flag(parser: Parser, flag: Flag) -> None:
    names = (f"--{flag.name}", *flag.aliases)
    text = flag.help.replace("%", "%%") + shown_default(flag)
    if flag.is_switch:
        parser.add_argument(*names, dest=flag.name, action=argparse.BooleanOptionalAction, help=text)
    elif flag.is_list:
        parser.add_argument(*names, dest=flag.name, nargs="+", action="extend", metavar="X", help=text)
    else:
        metavar = "{" + ",".join(flag.choices) + "}" if flag.choices else "X"
        parser.add_argument(*names, dest=flag.name, metavar=metavar, help=text)


def shown_default(flag: Flag) -> str:
    default = flag.value_default
    return "" if default in (None, (), "") or flag.name == "model" else f" (default: {default})"


def unknown_argument(unknown: Sequence[str], command: Command) -> str:
    """One line about the first argument nobody knows: why, or the nearest known one."""
    argument = next((item for item in unknown if item.startswith("-")), unknown[0])
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    typed = argument.partition("=")[0]
    name = typed.lstrip("-")
    if command.takes_model and name in NOT_SUPPORTED:
        return f"{typed} is not supported: {NOT_SUPPORTED[name]}"
    return f"unknown flag {typed}{nearest(name, spellings(command.all_flags))}"
