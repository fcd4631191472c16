"""The exception tree: every expected failure is one line that names the file and the remedy.

The command line turns `exit_code` into the process's exit status (design section 7). Anything that is not a
`MoevisionError` is a bug and exits with 1.
"""


class MoevisionError(Exception):
    """Base of every expected failure; its text is one line for the user."""

    exit_code = 1


class UsageError(MoevisionError):
    """The request itself cannot be carried out: unknown option value, colliding outputs, missing folder."""

    exit_code = 2


class InputError(MoevisionError):
    """One input cannot be processed (missing, damaged, refused by a limit); the other inputs still are."""

    exit_code = 3


class WeightsError(MoevisionError):
    """A weights file is missing, damaged, of an unknown format or not what the manifest says."""

    exit_code = 4


class MemoryExhaustedError(MoevisionError):
    """The device ran out of memory even at the smallest tile."""

    exit_code = 5


class MissingExtraError(UsageError):
    """A feature needs an optional dependency; the text names the extra to install."""
