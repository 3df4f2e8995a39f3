"""ModelService, Tokenize and Detokenize."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from inferd import __version__
from inferd.testing.fake_daemon import VOCAB_SIZE
from inferd.testing.wire import decode_failure
from inferd.v1 import common_pb2, inference_pb2, model_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub
from inferd.v1.model_pb2_grpc import ModelServiceStub


def test_list_models(models: ModelServiceStub) -> None:
    (card,) = models.ListModels(model_pb2.ListModelsRequest()).models

    assert (card.name, list(card.aliases)) == ("fake", ["alias"])
    assert list(card.tasks) == [
        model_pb2.TASK_GENERATE,
        model_pb2.TASK_SCORE_CONTINUATIONS,
        model_pb2.TASK_SCORE_LABELS,
    ]
    assert card.max_context_tokens == 2048


def test_model_info_has_what_a_gateway_needs(models: ModelServiceStub) -> None:
    info = models.GetModelInfo(model_pb2.GetModelInfoRequest(model="alias"))

    assert info.card.name == "fake"
    assert (info.architecture, info.dtype) == ("FakeForCausalLM", "float32")
    assert [(template.name, template.source) for template in info.chat_templates] == [("default", "{{ messages }}")]
    assert dict(info.template_variables) == {"bos_token": "<bos>", "eos_token": "<eos>"}
    assert list(info.tokenizer.eos_token_ids) == [257]
    assert [(token.role, token.id) for token in info.tokenizer.special_tokens] == [
        ("bos", 256),
        ("eos", 257),
        ("", 258),
    ]
    assert info.default_sampling.top_k == 40
    assert not info.default_sampling.HasField("temperature")
    assert (info.limits.max_context_tokens, info.limits.max_choices, info.limits.max_queue) == (2048, 16, 64)
    assert list(info.constraints) == [1, 2, 3, 4, 5, 6]
    assert info.default_truncation == common_pb2.TRUNCATION_ERROR


def test_an_etag_saves_the_rest(models: ModelServiceStub) -> None:
    info = models.GetModelInfo(model_pb2.GetModelInfoRequest())
    again = models.GetModelInfo(model_pb2.GetModelInfoRequest(if_none_match=info.etag))

    assert again == model_pb2.GetModelInfoResponse(etag=info.etag)
    assert models.GetModelInfo(model_pb2.GetModelInfoRequest(if_none_match="other")) == info


def test_server_info(models: ModelServiceStub) -> None:
    info = models.GetServerInfo(model_pb2.GetServerInfoRequest())

    assert info.version == __version__
    assert info.instance_id
    assert (info.max_running, info.max_step_tokens, info.kv_blocks) == (64, 512, 1024)
    assert "weights" in [phase.name for phase in info.startup_phases]


def tokenize(
    stub: InferenceServiceStub, *inputs: common_pb2.Prompt, **fields: Any
) -> list[inference_pb2.TokenizedInput]:
    response = stub.Tokenize(inference_pb2.TokenizeRequest(inputs=inputs, **fields))
    assert response.tokenizer_fingerprint == "bytes"
    return list(response.inputs)


def test_tokenize_a_batch_with_offsets_and_pieces(stub: InferenceServiceStub) -> None:
    first, second = tokenize(
        stub, common_pb2.Prompt(text="aé"), common_pb2.Prompt(text="<bos>b"), offsets=True, pieces=True
    )

    assert list(first.token_ids) == list("aé".encode())
    assert (list(first.starts), list(first.ends)) == ([0, 1, 1], [1, 3, 3])
    assert list(first.pieces) == [b"a", b"\xc3", b"\xa9"]
    assert (list(second.token_ids), list(second.ends), second.count) == ([256, ord("b")], [5, 6], 2)


def test_vocabulary_strings_tell_tokens_apart(stub: InferenceServiceStub) -> None:
    (tokenized,) = tokenize(stub, common_pb2.Prompt(text="<bos>é"), vocabulary_strings=True)
    first, *halves = tokenized.vocabulary_strings
    assert first == "<bos>"
    assert len(set(halves)) == 2
    assert all(halves)


def test_count_only_counts_only(stub: InferenceServiceStub) -> None:
    (counted,) = tokenize(stub, common_pb2.Prompt(text="x" * 100_000), count_only=True, offsets=True, pieces=True)
    assert counted == inference_pb2.TokenizedInput(count=100_000)


def test_user_segments_cannot_forge_control_tokens(stub: InferenceServiceStub) -> None:
    runs = [{"text": "<user>", "parse_special": True}, {"text": "<user>"}]
    (tokenized,) = tokenize(stub, common_pb2.Prompt(segments={"segments": runs}))
    assert list(tokenized.token_ids) == [258, *b"<user>"]


def test_detokenize(stub: InferenceServiceStub) -> None:
    inputs = [common_pb2.TokenIds(ids=[256, *b"hi"]), common_pb2.TokenIds()]
    shown = stub.Detokenize(inference_pb2.DetokenizeRequest(inputs=inputs))
    hidden = stub.Detokenize(inference_pb2.DetokenizeRequest(inputs=inputs, skip_special_tokens=True))

    assert (list(shown.texts), list(hidden.texts)) == (["<bos>hi", ""], ["hi", ""])


@pytest.mark.parametrize(
    ("method", "request_", "code", "field"),
    [
        ("Tokenize", inference_pb2.TokenizeRequest(), "INVALID_ARGUMENT", "inputs"),
        ("Tokenize", inference_pb2.TokenizeRequest(inputs=[{}]), "INVALID_ARGUMENT", "inputs[0]"),
        ("Tokenize", inference_pb2.TokenizeRequest(inputs=[{"text": "a"}] * 257), "INVALID_ARGUMENT", "inputs"),
        (
            "Tokenize",
            inference_pb2.TokenizeRequest(inputs=[{"token_ids": {"ids": [1]}}]),
            "INVALID_ARGUMENT",
            "inputs[0].token_ids",
        ),
        ("Tokenize", inference_pb2.TokenizeRequest(model="no", inputs=[{"text": "a"}]), "NOT_FOUND", None),
        ("Detokenize", inference_pb2.DetokenizeRequest(), "INVALID_ARGUMENT", "inputs"),
        ("Detokenize", inference_pb2.DetokenizeRequest(inputs=[{"ids": [259]}]), "INVALID_ARGUMENT", "inputs[0].ids"),
        ("Detokenize", inference_pb2.DetokenizeRequest(model="no", inputs=[{}]), "NOT_FOUND", None),
    ],
)
def test_bad_input(stub: InferenceServiceStub, method: str, request_: object, code: str, field: str | None) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        getattr(stub, method)(request_)
    failure = decode_failure(raised.value)
    assert failure.code == code
    assert failure.fields == ((field,) if field else ())


def test_unknown_model_info(models: ModelServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        models.GetModelInfo(model_pb2.GetModelInfoRequest(model="no"))
    failure = decode_failure(raised.value)
    assert (failure.reason, failure.metadata) == ("MODEL_NOT_FOUND", {"model": "no"})


def test_ids_the_tokenizer_has_and_the_engine_lacks_cannot_be_generated_from(stub: InferenceServiceStub) -> None:
    request = inference_pb2.GenerateRequest(prompt={"token_ids": {"ids": [VOCAB_SIZE]}})
    with pytest.raises(grpc.RpcError) as raised:
        next(stub.Generate(request))
    assert decode_failure(raised.value).fields == ("prompt.token_ids",)


def test_the_tokenizer_comes_in_pieces(models: ModelServiceStub) -> None:
    pieces = list(models.DownloadTokenizer(model_pb2.DownloadTokenizerRequest(model="alias")))
    assert [(piece.file_name, len(piece.data)) for piece in pieces] == [
        ("tokenizer.json", 1 << 20),
        ("tokenizer.json", 1 << 20),
        ("tokenizer.json", (1 << 19) + 2),
        ("empty.json", 0),
    ]
    assert {piece.total_bytes for piece in pieces[:3]} == {(5 << 19) + 2}
    known = pieces[0].fingerprint
    again = list(models.DownloadTokenizer(model_pb2.DownloadTokenizerRequest(if_none_match=known)))
    assert again == [model_pb2.DownloadTokenizerResponse(fingerprint=known)]
    with pytest.raises(grpc.RpcError) as raised:
        list(models.DownloadTokenizer(model_pb2.DownloadTokenizerRequest(model="nobody")))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
