"""From a network to the ONNX file that is served: export, lower precision, adoption."""
