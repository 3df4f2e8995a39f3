"""Which tasks a model serves, and the refusal of the others."""

from __future__ import annotations

from inferd.errors import TaskNotSupported
from inferd.models.pooling import Capabilities, Classifier, Embedding
from inferd.server.served_model import ServedModel
from inferd.v1 import model_pb2

GENERATING = (model_pb2.TASK_GENERATE, model_pb2.TASK_SCORE_CONTINUATIONS, model_pb2.TASK_SCORE_LABELS)


def tasks_of(capabilities: Capabilities) -> list[model_pb2.Task]:
    """Exactly what the RPCs accept, in the order of their numbers."""
    tasks = list(GENERATING) if capabilities.generates else []
    if capabilities.embedding is not None:
        tasks += [model_pb2.TASK_EMBED, model_pb2.TASK_SCORE_PAIRS]
    if capabilities.classifier is not None:
        tasks.append(model_pb2.TASK_CLASSIFY)
        if len(capabilities.classifier.labels) == 1:
            tasks.append(model_pb2.TASK_SCORE_PAIRS)
    return sorted(tasks)


def require(model: ServedModel, task: model_pb2.Task) -> None:
    """Raises TaskNotSupported unless the model's checkpoint can do this."""
    served = tasks_of(model.capabilities)
    if task not in served:
        names = ", ".join(map(task_name, served))
        raise TaskNotSupported(
            f"the model {model.name} cannot {task_name(task)}; it can {names}",
            metadata={"model": model.name, "task": task_name(task)},
        )


def task_name(task: model_pb2.Task) -> str:
    return model_pb2.Task.Name(task).removeprefix("TASK_").lower()


def embedding_of(model: ServedModel) -> Embedding:
    """Of a model that embeds: require() comes before."""
    assert model.capabilities.embedding is not None
    return model.capabilities.embedding


def classifier_of(model: ServedModel) -> Classifier:
    """Of a model with a classification head: require() comes before."""
    assert model.capabilities.classifier is not None
    return model.capabilities.classifier
