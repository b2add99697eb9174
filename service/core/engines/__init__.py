"""Runs networks, in ONNX Runtime or OpenVINO, with what the machine has."""
