"""What a key must be allowed to do, for every RPC of the daemon. A test holds this against the descriptors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

INFER, ADMIN, OBSERVE = "infer", "admin", "observe"
SCOPES = (INFER, ADMIN, OBSERVE)

PUBLIC: frozenset[str] = frozenset()
INFERENCE = frozenset({INFER})
DISCOVERY = frozenset({INFER, OBSERVE})
WATCHING = frozenset({OBSERVE, ADMIN})
CONTROL = frozenset({ADMIN})
ANY = frozenset(SCOPES)

# Service -> method -> the scopes of which a key needs one.
RPC_SCOPES: Mapping[str, Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "inferd.v1.InferenceService": {
            "Generate": INFERENCE,
            "GenerateMux": INFERENCE,
            "Embed": INFERENCE,
            "EmbedStream": INFERENCE,
            "Score": INFERENCE,
            "ScoreStream": INFERENCE,
            "Tokenize": INFERENCE,
            "TokenizeStream": INFERENCE,
            "Detokenize": INFERENCE,
        },
        "inferd.v1.ModelService": {
            "ListModels": DISCOVERY,
            "GetModelInfo": DISCOVERY,
            "DownloadTokenizer": INFERENCE,
            "GetServerInfo": DISCOVERY,
        },
        "inferd.v1.AdminService": {
            "AbortRequests": CONTROL,
            "Drain": CONTROL,
            "Undrain": CONTROL,
            "ClearPrefixCache": CONTROL,
            "WatchLoad": WATCHING,
            "DumpState": CONTROL,
        },
        "grpc.health.v1.Health": {"Check": PUBLIC, "Watch": PUBLIC, "List": PUBLIC},
        "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": ANY},
        "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANY},
    }
)


def scopes_of_method(path: str) -> frozenset[str]:
    """Of `/service/Method`. What does not exist is nobody's, but only a caller with a key is told so."""
    _, service, method = path.split("/", 2) if path.count("/") == 2 else ("", "", "")
    return RPC_SCOPES.get(service, {}).get(method, ANY)
