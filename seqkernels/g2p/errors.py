"""Errors that the user can put right: printed as one sentence, without a traceback."""


class G2PError(Exception):
    """Bad input, a missing package or a file that cannot be used; the message says what to do."""
