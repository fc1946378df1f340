"""What a user did that cannot work, said in one sentence."""


class UserError(Exception):
    """A mistake the user can mend; the command line prints its message alone, without a traceback."""


class UserValueError(UserError, ValueError):
    """An argument or a setting with a value that it cannot have: Python's own error for it too, for who calls us."""
