"""The forms of tool calls by name: their parsers, and how a model is held to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from inferd_gateway.parsers import deepseek_v3, llama3_json, mistral
from inferd_gateway.parsers.deepseek_v3 import DeepSeekV3Parser
from inferd_gateway.parsers.hermes import HermesParser
from inferd_gateway.parsers.json_list import JsonListParser
from inferd_gateway.parsers.llama3_json import Llama3JsonParser
from inferd_gateway.parsers.mistral import MistralParser
from inferd_gateway.parsers.pieces import Parser
from inferd_gateway.parsers.pythonic import PythonicParser
from inferd_gateway.parsers.qwen3_xml import Qwen3XmlParser

Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of each tool by its name


@dataclass(frozen=True)
class Frame:
    """What stands around the arguments of a call, and around all calls (before, after). NAME in `begin` is the tool's
    name, quoted after a colon."""

    begin: str
    end: str
    separator: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """make: a parser for these tools. frame: None where arguments are no JSON, so that JsonListParser's is used.
    markers: control tokens that the parser must see."""

    make: Callable[[Schemas], Parser]
    frame: Frame | None = None
    markers: tuple[str, ...] = ()


HERMES = ToolFormat(
    lambda _: HermesParser(),
    Frame('<tool_call>\n{"name": NAME, "arguments": ', "}\n</tool_call>", "\n"),
    ("<tool_call>", "</tool_call>"),
)
QWEN3_XML = ToolFormat(Qwen3XmlParser, None, ("<tool_call>", "</tool_call>"))
FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "hermes": HERMES,
        "qwen3_json": HERMES,
        "qwen3_xml": QWEN3_XML,
        "qwen3_coder": QWEN3_XML,
        "llama3_json": ToolFormat(
            Llama3JsonParser, Frame('{"name": NAME, "parameters": ', "}", "; "), (llama3_json.TAG,)
        ),
        "mistral": ToolFormat(
            lambda _: MistralParser(),
            Frame('{"name": NAME, "arguments": ', "}", ", ", f"{mistral.OPEN}[", "]"),
            (mistral.OPEN, mistral.ARGS, mistral.CALL_ID),
        ),
        "pythonic": ToolFormat(PythonicParser),
        "deepseek_v3": ToolFormat(
            lambda _: DeepSeekV3Parser(),
            Frame(
                f"{deepseek_v3.OPEN}function{deepseek_v3.SEPARATOR}NAME\n```json\n",
                f"\n```{deepseek_v3.CLOSE}",
                "\n",
                deepseek_v3.ALL_OPEN,
                deepseek_v3.ALL_CLOSE,
            ),
            (
                deepseek_v3.ALL_OPEN,
                deepseek_v3.ALL_CLOSE,
                deepseek_v3.OPEN,
                deepseek_v3.SEPARATOR,
                deepseek_v3.CLOSE,
            ),
        ),
    }
)
PLAIN = ToolFormat(lambda _: JsonListParser(), Frame('{"name": NAME, "parameters": ', "}", ", ", "[", "]"))
