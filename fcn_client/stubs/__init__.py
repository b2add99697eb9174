"""gRPC stubs of `segmentation.v1`, written by `make proto`."""
