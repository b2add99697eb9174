"""Bytes to pixels and back: headers, decoding, geometry, tiles."""
