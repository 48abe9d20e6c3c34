"""Errors that a user can correct. The program prints their message without a traceback."""


class UserError(Exception):
    """A wrong file, key or value. The message names it and the right value."""


class AgreedError(UserError):
    """A UserError that every rank raises at the same point. Only the server prints it."""


def sentence_of(error: UserError | OSError) -> str:
    """Return the message of an error that the user can correct.

    Of a file that the system refuses, its name and the reason. Raises the error again if it names
    no file: then it is a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None or error.strerror is None:
        raise error
    return f"{error.filename}: {error.strerror}"
