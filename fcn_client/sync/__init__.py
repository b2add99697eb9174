# Made from fcn_client/aio/__init__.py by `make sync`: change that.
"""Holds the client for threads, made by `make sync` from `fcn_client/aio/`."""
