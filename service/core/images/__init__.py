"""Turns bytes into pixels: headers, decoding, padding, tiles."""
