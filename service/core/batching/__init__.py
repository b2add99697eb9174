"""Who is admitted, who waits, and which images run together."""
