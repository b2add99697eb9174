"""Protocol definitions and the Python stubs generated from them by `proto/generate.py`."""
