"""The exceptions a user is meant to read."""


class InputError(ValueError):
    """Something given by the user (a file, a config, an array) cannot be used.

    The message is complete by itself: it names the file or key, what was expected, what came and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class WorkersLost(RuntimeError):
    """Whatever performs the jobs of a run is gone, or cannot be started.

    The message is complete by itself. The command line prints it without a traceback and exits with code 1: what was
    finished is kept, and the same command goes on from there.
    """
