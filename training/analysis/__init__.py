"""The paper's side experiments: what a table or a section claims, as functions to check it with."""
