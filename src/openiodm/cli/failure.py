"""How a command ends when it does not end well."""

REFUSED = 1  # the server said no, or the task failed
USAGE = 2  # as every command line tool
STOPPED = 3  # the task was stopped
TIMED_OUT = 4  # it was not done in time
INTERRUPTED = 130  # Ctrl-C, as shells count it


class Failure(Exception):
    """Ends the command: one clear line on stderr and an exit code."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code
