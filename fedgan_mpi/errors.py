"""The one kind of error that is the user's to mend, and is told in one sentence without a
traceback."""


class UserError(Exception):
    """A mistake in a file, key or value that the user gave; the message names it and what would be
    right."""


class AgreedError(UserError):
    """A user's mistake that every rank knows of: one says it, all leave together."""
