"""What runs a network: ONNX Runtime, OpenVINO, and what they need of the machine."""
