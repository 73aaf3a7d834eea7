"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something given by the user (a file, a config, an array) cannot be used.

    The message is complete by itself: it names the file or key, what was expected, what came and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
