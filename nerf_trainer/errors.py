"""Errors that a user can mend, each with the exit code its command ends with.

A message is one line: the file or key, what was found there, what was expected, and the fix.
"""

MAX_LINE = 400
"""Longest message, in characters, that a command prints for an error."""


class UserError(Exception):
    """Something outside the program is wrong; the message says what and how to mend it."""

    exit_code = 1


class ConfigError(UserError):
    """A wrong key, type, class name or value in a configuration or on the command line."""

    exit_code = 2


class DataError(UserError):
    """A dataset that is missing, damaged or breaks its format's rules."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing or can't be used for what was asked."""

    exit_code = 4


class DivergenceError(UserError):
    """Training produced values that are not finite and could not recover."""

    exit_code = 5


class StorageError(UserError):
    """The disk refused: full, read-only or not permitted."""

    exit_code = 6
