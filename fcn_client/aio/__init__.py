"""Holds the client for asyncio, from which `make sync` makes `fcn_client/sync/`."""
