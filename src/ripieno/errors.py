"""The two kinds of failure that a command reports in one line (see `cli.main` for the exit codes)."""


class UserError(Exception):
    """A user's mistake (exit code 2): the message names the file, line or key, and the mend."""


class EnvironmentFault(Exception):
    """The environment's fault (exit code 1): a disk, a lock held by another process, a damaged file."""
