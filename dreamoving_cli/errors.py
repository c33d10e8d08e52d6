"""What can go wrong for a user, and the exit code of each: a problem, its value, and the remedy.

Anything that is not a `UserError` is a bug of ours and keeps its traceback (exit code 1).
"""

EXIT_INTERRUPTED = 130  # Ctrl-C, as shells expect it


class UserError(Exception):
    """One clear sentence for the user: what is wrong (with its value) and what to do about it."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy


class UsageError(UserError):
    """An option or preset value that cannot be used."""

    exit_code = 2


class InputError(UserError):
    """An input file that is missing, unreadable or unfit."""

    exit_code = 3


class WeightsError(UserError):
    """A weight file that is missing, wrong or refused."""

    exit_code = 4


class DeviceMemoryError(UserError):
    """The render does not fit into the memory of its device."""

    exit_code = 5


class OutputError(UserError):
    """An output that exists, cannot be written or does not fit on the disk."""

    exit_code = 6


class MismatchError(WeightsError):
    """A weight file whose bytes are not the locked ones."""

    exit_code = 7


class GatedError(WeightsError):
    """A weight file that is not given to everybody: an account or accepted terms are missing."""

    exit_code = 8


class DeviceLostError(UserError):
    """One of several devices that share a render failed, in a way that is not the user's."""

    exit_code = 10


class OfflineError(WeightsError):
    """A weight file that is not here while nothing may be fetched."""

    exit_code = 9
