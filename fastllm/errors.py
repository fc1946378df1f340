"""What a user did that cannot work, said in one sentence."""


class UserError(Exception):
    """A mistake the user can mend; the command line prints its message alone, without a traceback."""
