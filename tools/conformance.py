"""`make conformance`: Schemathesis against a running product, on our own /openapi.json and on OpenAI's description.

    python tools/conformance.py ST [SPEC]

ST is the `st` command; SPEC a cut of OpenAI's own OpenAPI document (chat completions, completions, embeddings, models),
which is not part of this repository. Fails on a server error, or on an answer that its description does not allow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import BertModel

from inferd.testing.http_fields import MODEL
from inferd.testing.product import running_daemon, running_gateway
from inferd.testing.tiny_bert import add_sentence_modules, make_tiny_bert
from inferd.testing.tiny_chat import write_tiny_chat

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
EXAMPLES = 50
MAX_TOKENS = 8  # of one answer: the point is the form
LENGTHS = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
EMBEDDER = "tiny-embedder"
QUIET = ("--log-level", "warning")
EMBEDDING = {
    "CreateEmbeddingRequest",
    "EmbeddingRequest",
    "PoolingRequest",
    "ClassifyRequest",
    "ScoreRequest",
    "RerankRequest",
}


def run(st: str, spec: str, url: str) -> bool:
    command = [st, "run", spec, "--url", url, "--phases", "examples,coverage,fuzzing", "-n", str(EXAMPLES)]
    command += ["--continue-on-failure", "--checks", ",".join(CHECKS), "--suppress-health-check", "all"]
    return subprocess.run(command, check=False).returncode == 0


def adapted(document: Any) -> Any:
    """Of the models, only ours; of answers, only short ones. Without it, nearly every call would be refused."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            for part in (schema, *schema.get("allOf", [])):
                adapt(part.get("properties", {}), EMBEDDER if name in EMBEDDING else MODEL)
    # OpenAI's gives this operation only JSON, and then `stream: true`, in words, server-sent events.
    for path in document["paths"].keys() & {"/completions"}:
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        content.setdefault("text/event-stream", {"schema": {"type": "string"}})
    for content in event_streams(document):
        # The tool compares an event as a whole, {event, data}, with a schema that describes the data of one.
        described = content["schema"].get("$ref", "")
        if described.endswith("Chunk"):
            data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"$ref": described}}
            either = {"anyOf": [{"const": "[DONE]"}, data]}
            content["schema"] = {"type": "object", "required": ["data"], "properties": {"data": either}}
    # OpenAI's answers `encoding_format: base64` with a text, and describes a list of numbers only.
    if (embedding := document["components"]["schemas"].get("Embedding")) is not None:
        values = embedding["properties"]["embedding"]
        embedding["properties"]["embedding"] = {"anyOf": [values, {"type": "string", "format": "byte"}]}
    return document


def event_streams(document: Any) -> Iterator[Any]:
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation["responses"].get("200", {}).get("content", {})
            if "text/event-stream" in content:
                yield content["text/event-stream"]


def adapt(properties: dict[str, Any], model: str) -> None:
    if "model" in properties:
        properties["model"] = {"type": "string", "enum": [model]}
    for name in LENGTHS & properties.keys():
        properties[name] = {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}


def check(st: str, url: str, spec: Path | None, folder: Path) -> bool:
    own = json.loads(urllib.request.urlopen(f"{url}/openapi.json", timeout=10).read())
    documents = {"own": (own, url)}
    if spec is not None:
        documents["openai"] = (json.loads(spec.read_text(encoding="utf-8")), f"{url}/v1")
    fine = True
    for name, (document, base) in documents.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(adapted(document)), encoding="utf-8")
        fine &= run(st, str(path), base)
    return fine


def main() -> None:
    st, spec = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "embedder").mkdir()
        write_tiny_chat(folder / "chat")
        make_tiny_bert(folder / "embedder", BertModel)
        add_sentence_modules(folder / "embedder")
        with (
            running_daemon(str(folder / "chat"), "--served-model-name", MODEL, *QUIET) as generator,
            running_daemon(str(folder / "embedder"), "--served-model-name", EMBEDDER, *QUIET) as embedder,
            running_gateway((generator, embedder), "--uvicorn-log-level", "warning") as url,
        ):
            fine = check(st, url, spec, folder)
    sys.exit(0 if fine else "conformance: see above")


if __name__ == "__main__":
    main()
