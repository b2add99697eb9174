"""Measurements. Each script writes one JSON file to bench/results; conclusions are in LOG.md."""

import os

# Before any script imports onnxruntime: a measurement reports to nobody (see cli/main.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
