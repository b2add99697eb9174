"""Translators between the wire and `service.core.segmenter`; no logic of their own."""
