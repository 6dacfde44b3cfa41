"""The functions behind the commands, one module a noun: arguments, defaults and help, and what they print.

Arguments are parsed from the signatures and docstrings. What a command does is elsewhere, imported inside it, so that
`--help` loads no model. `tasks/cli.py` lists and runs them.
"""
