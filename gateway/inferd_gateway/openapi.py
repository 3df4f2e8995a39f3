"""The description of the API, /openapi.json: what FastAPI reads from the routes, completed by what they answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from inferd_gateway.schemas.replies import ChatCompletionChunk, CompletionChunk, NamedEvent

REFERENCE = "#/components/schemas/{model}"
EVENTS: tuple[type[BaseModel], ...] = (ChatCompletionChunk, CompletionChunk, NamedEvent)
REQUEST_ID = {
    "x-request-id": {
        "description": "The caller's own id, where it is sane, else a new one.",
        "required": True,
        "schema": {"type": "string"},
    }
}


def describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1. Every operation tells what it answers, how it fails, and whether it takes a key."""
    document: dict[str, Any] = app.openapi()
    if "securitySchemes" in document["components"]:  # FastAPI keeps the document
        return document
    _, events = models_json_schema([(model, "serialization") for model in EVENTS], ref_template=REFERENCE)
    document["components"]["schemas"] |= events["$defs"]
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for operations in document["paths"].values():
        for operation in operations.values():
            complete(operation["responses"])
    return document


def complete(responses: dict[str, Any]) -> None:
    for response in responses.values():
        response["headers"] = REQUEST_ID
        for content in response.get("content", {}).values():
            if "$ref" in content["schema"]:
                # Beside the model stands what the function's annotation says, which is less.
                content["schema"] = {"$ref": content["schema"]["$ref"]}
