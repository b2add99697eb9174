"""REST: translates HTTP for the segmenter."""
