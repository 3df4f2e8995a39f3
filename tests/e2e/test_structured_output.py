"""Constrained output of a real model, over both protocols: it is valid, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import grpc
import jsonschema
import openai
import pytest

from inferd.request import FinishReason
from inferd.testing.product import running_product
from inferd.testing.wire import collect
from inferd.v1 import inference_pb2, inference_pb2_grpc

PROMPT = "Describe a person as JSON:"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "role": {"enum": ["admin", "user"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
LIST = 'root ::= "[" item ("," " " item)* "]"\nitem ::= [a-z]+\n'
CALL = {
    "format": {
        "type": "sequence",
        "elements": [
            {"type": "const_string", "value": "I call "},
            {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": PERSON}, "end": "</f>"},
        ],
    }
}


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


def is_call(text: str) -> bool:
    match = re.fullmatch("I call <f>(.*)</f>", text, re.DOTALL)
    return match is not None and is_person(match[1])


KINDS: list[tuple[dict[str, Any], Any]] = [
    ({"json_schema": json.dumps(PERSON)}, is_person),
    ({"json_object": {}}, lambda text: isinstance(json.loads(text), dict)),
    ({"regex": r"\d{4}-\d{2}-\d{2}"}, re.compile(r"\d{4}-\d{2}-\d{2}").fullmatch),
    ({"ebnf": LIST}, re.compile(r"\[[a-z]+(, [a-z]+)*\]").fullmatch),
    ({"choices": {"values": ["Paris", "New York", "Newcastle"]}}, {"Paris", "New York", "Newcastle"}.__contains__),
    ({"structural_tag": json.dumps(CALL)}, is_call),
]


def request(seed: int = 1, max_tokens: int = 120, prompt: str = PROMPT, **fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        prompt={"text": prompt}, sampling={"temperature": 0.8, "seed": seed}, stop={"max_tokens": max_tokens}, **fields
    )


@pytest.fixture(scope="module")
def stub(product):
    with product.channel() as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.mark.parametrize(("constraint", "is_valid"), KINDS, ids=[next(iter(kind)) for kind, _ in KINDS])
def test_every_choice_of_every_kind_is_valid(stub, constraint, is_valid):
    choices = collect(stub.Generate(request(num_choices=3, constraint=constraint)))

    assert len(choices) == 3
    finished = [choice for choice in choices.values() if choice.reason is FinishReason.EOS]
    assert all(is_valid(choice.text) for choice in finished)
    assert all(choice.reason is FinishReason.MAX_TOKENS for choice in choices.values() if choice not in finished)
    assert finished


def test_reasoning_is_free_and_the_answer_is_not(stub):
    constraint = {"regex": " (yes|no)", "starts_after": "."}
    choice = collect(stub.Generate(request(prompt="Is the sky blue? Think first.", constraint=constraint)))[0]

    assert choice.reason is FinishReason.EOS
    assert re.fullmatch(r"[^.]*\. (yes|no)", choice.text, re.DOTALL)


def test_log_probabilities_are_those_of_the_model(stub):
    """The first token's distribution is the same with a constraint, whatever was drawn."""
    output = {"logprobs": {"top_n": 3}}
    free = collect(stub.Generate(request(max_tokens=1, output=output)))[0].deltas[0].logprobs
    bound = collect(stub.Generate(request(max_tokens=1, output=output, constraint={"regex": "Q+"})))[0]
    bound_logprobs = bound.deltas[0].logprobs

    assert set(bound.text) == {"Q"}
    assert list(bound_logprobs.top_token_ids) == list(free.top_token_ids)
    assert list(bound_logprobs.top_values) == pytest.approx(list(free.top_values), abs=1e-4)
    assert bound_logprobs.values[0] < free.top_values[-1]
    assert bound_logprobs.ranks[0] > 3


@pytest.mark.timeout(400)
def test_nobody_notices_the_others(demo_gguf):
    """Constrained or not, each is as if alone, also when the KV pool is too small for all and preempts."""
    bound = [request(seed, 40, constraint=kind, num_choices=2) for seed, (kind, _) in enumerate(KINDS)]
    free = [request(seed, 40, prompt=f"Story number {seed}:") for seed in range(6)]

    async def run(address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            alone = [await tokens_of(stub, message) for message in [*bound, *free]]
            return alone, await asyncio.gather(*(tokens_of(stub, message) for message in [*bound, *free]))

    with running_product(str(demo_gguf), "--num-kv-blocks", "14") as small:
        alone, together = asyncio.run(run(small.address))
        assert small.metric("inferd_preemptions_total") > 0
    assert alone == together
    assert all(alone)


async def tokens_of(stub, message):
    tokens: dict[int, list[int]] = {}
    async for part in stub.Generate(message):
        for choice in part.choices:
            tokens.setdefault(choice.index, []).extend(choice.token_ids)
    return tokens


@pytest.fixture(scope="module")
def client(product):
    with openai.OpenAI(base_url=f"{product.http}/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def ask(client):
    messages = [{"role": "user", "content": "Describe a person."}]
    return {"model": client.models.list().data[0].id, "messages": messages, "max_tokens": 120, "seed": 3}


FORMATS: list[tuple[dict[str, Any], Any]] = [
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON, "strict": True},
            }
        },
        is_person,
    ),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}}, is_person),
    ({"response_format": {"type": "structural_tag"} | CALL}, is_call),
    ({"extra_body": {"structured_outputs": {"json": PERSON}}}, is_person),
    ({"extra_body": {"structured_outputs": {"regex": "[ab]{3}"}}}, re.compile("[ab]{3}").fullmatch),
    ({"extra_body": {"structured_outputs": {"choice": ["one", "two"]}}}, {"one", "two"}.__contains__),
    ({"extra_body": {"structured_outputs": {"grammar": 'root ::= "x" [0-9]'}}}, re.compile("x[0-9]").fullmatch),
    ({"extra_body": {"structured_outputs": {"structural_tag": CALL}}}, is_call),
]


@pytest.mark.parametrize(("fields", "is_valid"), FORMATS)
def test_http_whole_and_streamed(client, ask, fields, is_valid):
    whole = client.chat.completions.create(**ask, **fields)
    chunks = client.chat.completions.create(**ask, **fields, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert whole.choices[0].finish_reason == "stop"
    assert is_valid(whole.choices[0].message.content)
    assert streamed == whole.choices[0].message.content


def test_http_json_object_is_an_object_or_cut_off(client, ask):
    choice = client.chat.completions.create(**ask, response_format={"type": "json_object"}).choices[0]

    assert choice.message.content.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_strict_refuses_what_it_cannot_promise(client, ask):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    named = {"name": "pair", "schema": schema}
    strict = {"type": "json_schema", "json_schema": named | {"strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(**ask, response_format=strict)
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format")

    loose = client.chat.completions.create(**ask, response_format={"type": "json_schema", "json_schema": named})
    assert set(json.loads(loose.choices[0].message.content)) <= {1, 2}
