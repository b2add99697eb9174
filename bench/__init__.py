"""Measures the server, other servers, the networks and training. LOG.md says what followed from it.

Each script writes one JSON file to bench/results.
"""

import os

# Before any script imports onnxruntime: a measurement reports to nobody (see cli/main.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
