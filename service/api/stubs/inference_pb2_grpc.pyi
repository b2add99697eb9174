# By `make proto` with grpcio-tools==1.72.2 from inference.proto, sha256 103db782b2f868db042ae8284b402ced.
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
