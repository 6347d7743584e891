"""The command line: a parser of verbs, and what each verb does."""

from vampo_core.cli.parser import main

__all__ = ["main"]
