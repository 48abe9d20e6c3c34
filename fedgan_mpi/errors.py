"""Errors that a user can correct. The program prints their message without a traceback."""


class UserError(Exception):
    """A wrong file, key or value. The message names it and the right value."""


class AgreedError(UserError):
    """A UserError that every rank raises at the same point. Only the server prints it."""
