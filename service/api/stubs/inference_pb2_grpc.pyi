# By `make proto` with grpcio-tools==1.72.2 from inference.proto, sha256 299b5d57c8ec13e2dd8f1d4fc6ad1803.
from typing import Any

class GRPCInferenceServiceStub:
    def __init__(self, channel: Any) -> None: ...
    ServerLive: Any
    ServerReady: Any
    ModelReady: Any
    ServerMetadata: Any
    ModelMetadata: Any
    ModelInfer: Any
    ModelStreamInfer: Any
    ModelConfig: Any
    ModelStatistics: Any
    RepositoryIndex: Any
    RepositoryModelLoad: Any
    RepositoryModelUnload: Any

def add_GRPCInferenceServiceServicer_to_server(servicer: Any, server: Any) -> None: ...
