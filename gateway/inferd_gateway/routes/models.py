"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from inferd_gateway.context import CurrentCall
from inferd_gateway.directory import ServedModel
from inferd_gateway.routes.access import DiscoveryRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.replies import Model, ModelList

router = APIRouter(route_class=DiscoveryRoute, responses=errors())


@router.get("/v1/models", responses=answers(ModelList))
async def list_models(call: CurrentCall) -> dict[str, Any]:
    await call.gateway.directory.refresh(not_older_than_s=1.0)
    return {"object": "list", "data": [model_object(name, model) for name, model in call.gateway.directory.all()]}


@router.get("/v1/models/{name:path}", responses=answers(Model))
async def retrieve_model(name: str, call: CurrentCall) -> dict[str, Any]:
    return model_object(name, await call.gateway.directory.resolve(name))


def model_object(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.info.card.created_unix,
        "owned_by": "inferd",
        "root": model.name,
        "parent": None,
        "max_model_len": model.context_tokens,
    }
