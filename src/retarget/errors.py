"""The errors that a user can act on."""


class UserError(ValueError):
    """Wrong input: the message says what was wrong, where, and what to do. The command line prints it alone."""


class UsageError(UserError):
    """Wrong arguments: nothing was begun. The command line ends with exit code 2."""


class DivergedError(UserError):
    """Training has left the numbers; ``epoch``, counted from 1, is the one in which it was seen."""

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.epoch)
