"""The command line: parses arguments, calls one function per verb, prints. Nothing else, and nothing heavy at
import.
"""

from dspkd.cli.app import app, main

__all__ = ["app", "main"]
