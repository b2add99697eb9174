"""Compares our server and the bare limit with six other servers of the same network."""
