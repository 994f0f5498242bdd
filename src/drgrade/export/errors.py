"""What an export of one kind raises."""

from drgrade.errors import UserError


class UnsuitableError(UserError):
    """The model cannot be exported in this form; the message says why."""
