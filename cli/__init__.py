"""The `fcn` command: one file a subcommand, lazy imports, no logic."""
