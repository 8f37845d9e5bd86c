"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the option and the mend; it is printed without a traceback."""


class NothingToSplitError(UserError):
    """Split shortcuts were asked of a network that has none: a ladder goes on without this rung."""
