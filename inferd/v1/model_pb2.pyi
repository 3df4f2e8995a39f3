from inferd.v1 import common_pb2 as _common_pb2
from inferd.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_GENERATE: _ClassVar[Task]
    TASK_EMBED: _ClassVar[Task]
    TASK_SCORE_PAIRS: _ClassVar[Task]
    TASK_SCORE_CONTINUATIONS: _ClassVar[Task]
    TASK_SCORE_LABELS: _ClassVar[Task]
    TASK_CLASSIFY: _ClassVar[Task]

class ConstraintKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSTRAINT_KIND_UNSPECIFIED: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_JSON_SCHEMA: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_JSON_OBJECT: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_REGEX: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_EBNF: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_CHOICES: _ClassVar[ConstraintKind]
    CONSTRAINT_KIND_STRUCTURAL_TAG: _ClassVar[ConstraintKind]
TASK_UNSPECIFIED: Task
TASK_GENERATE: Task
TASK_EMBED: Task
TASK_SCORE_PAIRS: Task
TASK_SCORE_CONTINUATIONS: Task
TASK_SCORE_LABELS: Task
TASK_CLASSIFY: Task
CONSTRAINT_KIND_UNSPECIFIED: ConstraintKind
CONSTRAINT_KIND_JSON_SCHEMA: ConstraintKind
CONSTRAINT_KIND_JSON_OBJECT: ConstraintKind
CONSTRAINT_KIND_REGEX: ConstraintKind
CONSTRAINT_KIND_EBNF: ConstraintKind
CONSTRAINT_KIND_CHOICES: ConstraintKind
CONSTRAINT_KIND_STRUCTURAL_TAG: ConstraintKind

class ModelCard(_message.Message):
    __slots__ = ("name", "aliases", "tasks", "created_unix", "max_context_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    tasks: _containers.RepeatedScalarFieldContainer[Task]
    created_unix: int
    max_context_tokens: int
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., tasks: _Optional[_Iterable[_Union[Task, str]]] = ..., created_unix: _Optional[int] = ..., max_context_tokens: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelCard]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelCard, _Mapping]]] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ("model", "if_none_match")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IF_NONE_MATCH_FIELD_NUMBER: _ClassVar[int]
    model: str
    if_none_match: str
    def __init__(self, model: _Optional[str] = ..., if_none_match: _Optional[str] = ...) -> None: ...

class SpecialToken(_message.Message):
    __slots__ = ("role", "text", "id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: str
    id: int
    def __init__(self, role: _Optional[str] = ..., text: _Optional[str] = ..., id: _Optional[int] = ...) -> None: ...

class ChatTemplate(_message.Message):
    __slots__ = ("name", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class TokenizerInfo(_message.Message):
    __slots__ = ("fingerprint", "kind", "vocab_size", "special_tokens", "eos_token_ids", "adds_bos", "adds_eos", "byte_level")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADDS_BOS_FIELD_NUMBER: _ClassVar[int]
    ADDS_EOS_FIELD_NUMBER: _ClassVar[int]
    BYTE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    kind: str
    vocab_size: int
    special_tokens: _containers.RepeatedCompositeFieldContainer[SpecialToken]
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    adds_bos: bool
    adds_eos: bool
    byte_level: bool
    def __init__(self, fingerprint: _Optional[str] = ..., kind: _Optional[str] = ..., vocab_size: _Optional[int] = ..., special_tokens: _Optional[_Iterable[_Union[SpecialToken, _Mapping]]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., adds_bos: _Optional[bool] = ..., adds_eos: _Optional[bool] = ..., byte_level: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_context_tokens", "max_output_tokens", "max_choices", "max_top_logprobs", "max_stop_strings", "max_batch_inputs", "max_message_bytes", "max_queue")
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHOICES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    max_context_tokens: int
    max_output_tokens: int
    max_choices: int
    max_top_logprobs: int
    max_stop_strings: int
    max_batch_inputs: int
    max_message_bytes: int
    max_queue: int
    def __init__(self, max_context_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., max_choices: _Optional[int] = ..., max_top_logprobs: _Optional[int] = ..., max_stop_strings: _Optional[int] = ..., max_batch_inputs: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_queue: _Optional[int] = ...) -> None: ...

class EmbeddingInfo(_message.Message):
    __slots__ = ("dimensions", "matryoshka_dimensions", "pooling", "normalized", "query_prefix", "document_prefix")
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MATRYOSHKA_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    QUERY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    dimensions: int
    matryoshka_dimensions: _containers.RepeatedScalarFieldContainer[int]
    pooling: str
    normalized: bool
    query_prefix: str
    document_prefix: str
    def __init__(self, dimensions: _Optional[int] = ..., matryoshka_dimensions: _Optional[_Iterable[int]] = ..., pooling: _Optional[str] = ..., normalized: _Optional[bool] = ..., query_prefix: _Optional[str] = ..., document_prefix: _Optional[str] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("card", "etag", "architecture", "revision", "dtype", "quantization", "tokenizer", "chat_templates", "template_variables", "default_sampling", "reasoning_format", "tool_call_format", "limits", "constraints", "embedding", "default_truncation")
    class TemplateVariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CARD_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REASONING_FORMAT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    card: ModelCard
    etag: str
    architecture: str
    revision: str
    dtype: str
    quantization: str
    tokenizer: TokenizerInfo
    chat_templates: _containers.RepeatedCompositeFieldContainer[ChatTemplate]
    template_variables: _containers.ScalarMap[str, str]
    default_sampling: _inference_pb2.SamplingParams
    reasoning_format: str
    tool_call_format: str
    limits: Limits
    constraints: _containers.RepeatedScalarFieldContainer[ConstraintKind]
    embedding: EmbeddingInfo
    default_truncation: _common_pb2.Truncation
    def __init__(self, card: _Optional[_Union[ModelCard, _Mapping]] = ..., etag: _Optional[str] = ..., architecture: _Optional[str] = ..., revision: _Optional[str] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., tokenizer: _Optional[_Union[TokenizerInfo, _Mapping]] = ..., chat_templates: _Optional[_Iterable[_Union[ChatTemplate, _Mapping]]] = ..., template_variables: _Optional[_Mapping[str, str]] = ..., default_sampling: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., reasoning_format: _Optional[str] = ..., tool_call_format: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., constraints: _Optional[_Iterable[_Union[ConstraintKind, str]]] = ..., embedding: _Optional[_Union[EmbeddingInfo, _Mapping]] = ..., default_truncation: _Optional[_Union[_common_pb2.Truncation, str]] = ...) -> None: ...

class DownloadTokenizerRequest(_message.Message):
    __slots__ = ("model", "if_none_match")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IF_NONE_MATCH_FIELD_NUMBER: _ClassVar[int]
    model: str
    if_none_match: str
    def __init__(self, model: _Optional[str] = ..., if_none_match: _Optional[str] = ...) -> None: ...

class DownloadTokenizerResponse(_message.Message):
    __slots__ = ("file_name", "data", "fingerprint", "total_bytes")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    data: bytes
    fingerprint: str
    total_bytes: int
    def __init__(self, file_name: _Optional[str] = ..., data: _Optional[bytes] = ..., fingerprint: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Topology(_message.Message):
    __slots__ = ("tensor_parallel", "pipeline_parallel", "devices")
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    tensor_parallel: int
    pipeline_parallel: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tensor_parallel: _Optional[int] = ..., pipeline_parallel: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class StartupPhase(_message.Message):
    __slots__ = ("name", "elapsed_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    elapsed_us: int
    def __init__(self, name: _Optional[str] = ..., elapsed_us: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "instance_id", "started_unix", "topology", "kv_block_tokens", "kv_blocks", "max_running", "max_step_tokens", "kernel_backends", "startup_phases")
    class KernelBackendsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_BACKENDS_FIELD_NUMBER: _ClassVar[int]
    STARTUP_PHASES_FIELD_NUMBER: _ClassVar[int]
    version: str
    instance_id: str
    started_unix: int
    topology: Topology
    kv_block_tokens: int
    kv_blocks: int
    max_running: int
    max_step_tokens: int
    kernel_backends: _containers.ScalarMap[str, str]
    startup_phases: _containers.RepeatedCompositeFieldContainer[StartupPhase]
    def __init__(self, version: _Optional[str] = ..., instance_id: _Optional[str] = ..., started_unix: _Optional[int] = ..., topology: _Optional[_Union[Topology, _Mapping]] = ..., kv_block_tokens: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., max_running: _Optional[int] = ..., max_step_tokens: _Optional[int] = ..., kernel_backends: _Optional[_Mapping[str, str]] = ..., startup_phases: _Optional[_Iterable[_Union[StartupPhase, _Mapping]]] = ...) -> None: ...
