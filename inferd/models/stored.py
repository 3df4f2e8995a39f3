"""From the parameters that blocks declare to the tensors of a checkpoint. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from inferd.blocks.parameters import WHOLE, Parameter
from inferd.checkpoint import TensorRecord
from inferd.models.names import Names, Stored, find_name
from inferd.models.spec import ModelSpec

LAYER = "{layer}"
EXPERT = "{expert}"


@dataclass(frozen=True, slots=True)
class Extract:
    """What one rank takes of one stored tensor.

    record         the tensor; of a stack of experts, as one matrix of all their rows
    rows, columns  of that matrix as it is stored; None: all
    is_transposed  it is stored [in, out]
    shape          of the result
    """

    record: TensorRecord
    rows: range | None
    columns: range | None
    is_transposed: bool
    head_dim: int
    rotary_dim: int
    rotary_start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """A parameter of a whole model and a tensor that it is read from (the first one of its experts').

    layer      None before and behind the layers
    num_bytes  of the parameter, where the tensor holds others too; of all its experts
    """

    layer: int | None
    parameter: Parameter
    record: TensorRecord
    num_bytes: int


def stored_tensors(spec: ModelSpec, names: Names) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors that a whole model is read from."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, parameters in _blocks(spec):
        for parameter in parameters.values():
            stored = find_name(names, parameter.name)
            shape = _stored_shape(parameter, stored, parameters)
            for name in _names(stored, parameter, layer):
                found[name] = shape
    return found


def stored_parameters(spec: ModelSpec, names: Names, tensors: Mapping[str, TensorRecord]) -> Iterator[StoredParameter]:
    """Every parameter of a checked checkpoint."""
    for layer, parameters in _blocks(spec):
        for parameter in parameters.values():
            stored = find_name(names, parameter.name)
            sources = _names(stored, parameter, layer)
            record = find_tensor(tensors, sources[0])
            total = sum(part.shape[0] for part in _fused_parts(parameter, stored, parameters))
            num_bytes = len(sources) * record.nbytes * parameter.shape[0] // total
            yield StoredParameter(layer, parameter, record, num_bytes)


def _blocks(spec: ModelSpec) -> Iterator[tuple[int | None, dict[str, Parameter]]]:
    """(layer, its parameters by name); layer None: what stands before and behind the layers."""
    yield None, _by_name((*spec.first_parameters(WHOLE), *spec.last_parameters(WHOLE)))
    for index in range(spec.num_layers):
        yield index, _by_name(spec.layer_parameters(index, WHOLE))


def _by_name(parameters: Iterable[Parameter]) -> dict[str, Parameter]:
    return {parameter.name: parameter for parameter in parameters}


def _names(stored: Stored, parameter: Parameter, layer: int | None) -> list[str]:
    name = stored.name.replace(LAYER, str(layer))
    if EXPERT not in name:
        return [name]
    return [name.replace(EXPERT, str(expert)) for expert in range(parameter.experts)]


def _fused_parts(parameter: Parameter, stored: Stored, parameters: Mapping[str, Parameter]) -> list[Parameter]:
    """The parameters that the stored tensor holds, in order."""
    if not stored.fused:
        return [parameter]
    module, _, ending = parameter.name.rpartition(".")
    prefix = module.rpartition(".")[0]
    return [parameters[f"{prefix}.{part}.{ending}"] for part in stored.fused]


def _stored_shape(parameter: Parameter, stored: Stored, parameters: Mapping[str, Parameter]) -> tuple[int, ...]:
    rows = sum(part.shape[0] for part in _fused_parts(parameter, stored, parameters))
    shape = (rows, *parameter.shape[1:])
    if stored.is_transposed:
        shape = shape[::-1]
    return (parameter.experts, *shape) if stored.is_stacked else shape


def extract(
    tensors: Mapping[str, TensorRecord],
    names: Names,
    parameters: Mapping[str, Parameter],
    name: str,
    layer: int,
    expert: int = 0,
) -> Extract:
    """Where a rank reads the parameter `name` of a checked checkpoint. parameters: all of the same block by name."""
    parameter, stored = parameters[name], find_name(names, name)
    source = stored.name.replace(LAYER, str(layer)).replace(EXPERT, str(expert))
    record = find_tensor(tensors, source)
    total, output = _output_rows(parameter, stored, parameters)
    is_transposed = stored.is_transposed and len(parameter.shape) == 2
    rows, columns = (parameter.columns, output) if is_transposed else (output, parameter.columns)
    num_rows = parameter.shape[1] if is_transposed else total
    if stored.is_stacked:
        record = replace(record, shape=(parameter.experts * num_rows, *record.shape[2:]))
        rows = rows or range(num_rows)
        rows = range(rows.start + expert * num_rows, rows.stop + expert * num_rows, rows.step)
    return Extract(
        record,
        None if rows == range(record.shape[0]) else rows,
        None if columns is None or columns == range(record.shape[1]) else columns,
        is_transposed,
        parameter.head_dim,
        parameter.rotary_dim,
        parameter.rotary_start,
        parameter.held_shape,
    )


def _output_rows(parameter: Parameter, stored: Stored, parameters: Mapping[str, Parameter]) -> tuple[int, range]:
    """(rows of the stored tensor, those of them that the rank holds of the parameter), for one expert."""
    parts = _fused_parts(parameter, stored, parameters)
    place = [part.name for part in parts].index(parameter.name)
    held = parameter.rows or range(parameter.shape[0])
    total = sum(part.shape[0] for part in parts)
    if stored.is_interleaved:
        step = len(parts)
        return total, range(held.start * step + place, (held.stop - 1) * step + place + 1, step)
    first = sum(part.shape[0] for part in parts[:place])
    return total, range(first + held.start, first + held.stop)


def canonical_names(tensors: Mapping[str, TensorRecord], expected: Iterable[str]) -> dict[str, TensorRecord]:
    """The tensors under the names of a model with a head: files written from the bare model lack the first component
    (`h.0.ln_1.weight` for `transformer.h.0.ln_1.weight`)."""
    shortened = {name.partition(".")[2]: name for name in expected}
    return {name if name in expected else shortened.get(name, name): record for name, record in tensors.items()}


def find_tensor(tensors: Mapping[str, TensorRecord], name: str) -> TensorRecord:
    """A tensor of a checked checkpoint, by its name in a model with a head."""
    return tensors[name] if name in tensors else tensors[name.partition(".")[2]]
