"""The command line: one file per verb, and the only place that prints.

A verb is a module with a literal ``HELP: str`` and ``main(argv: Sequence[str]) -> int``. Adding a
file adds the verb.
"""
