"""Turns what people have, masks of several kinds and polygons, into a folder data set."""
