"""Keeps the models that serve in step with the repository."""
