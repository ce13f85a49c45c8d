"""Errors that a user can act on."""


class UserError(ValueError):
    """Wrong input: the message says what is wrong, where, and what to do. Printed without a traceback."""


class UsageError(UserError):
    """Wrong arguments: nothing was started. The command line exits with code 2."""


class DivergedError(UserError):
    """Training has diverged; ``epoch``, counted from 1, is the one in which it was noticed."""

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.epoch)
