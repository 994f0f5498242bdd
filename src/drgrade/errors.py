"""The one exception a user is meant to read: a single line that names the culprit and the remedy."""


class UserError(Exception):
    """Bad input. The command line prints the message on one line and exits with status 2.

    Say which file or key is wrong, what is wrong with it, and what to do about it.
    """
