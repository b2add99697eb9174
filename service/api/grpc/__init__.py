"""gRPC: translates segmentation.v1 for the segmenter."""
