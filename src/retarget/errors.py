"""The errors that a user can act on."""


class UserError(ValueError):
    """Wrong input: the message says what was wrong, where, and what to do. The command line prints it alone."""


class UsageError(UserError):
    """Wrong arguments: nothing was begun. The command line ends with exit code 2."""
