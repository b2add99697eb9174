"""Scores a checkpoint, an ONNX file or a running server on a data set."""
