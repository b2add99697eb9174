"""The segmentation service: what runs in production. Imports no torch."""
