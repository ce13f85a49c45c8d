"""The error that a user can act on."""


class UserError(ValueError):
    """Wrong input: the message says what was wrong, where, and what to do. The command line prints it alone."""
