"""Decides who is admitted, who waits, and which images run together."""
