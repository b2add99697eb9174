"""Measurements. Each script writes one JSON file to bench/results; conclusions are in LOG.md."""
