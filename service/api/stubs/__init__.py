"""gRPC stubs of `segmentation.v1` and of the Open Inference Protocol, written by `make proto`."""
