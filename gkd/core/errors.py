"""The few exception types of the project.

Every message says what is wrong, what was given, where, and what to do about it. The command-line tools print the
message alone and exit with 2; the traceback appears when `GKD_TRACEBACK=1` is set.
"""


class GkdError(Exception):
    """Anything that a user, a file or a setting caused."""


class ConfigError(GkdError):
    """A configuration, or a combination of settings, that cannot be run."""


class DataError(GkdError):
    """A data file, record, image or pair set that is missing, damaged or unfit."""


class CheckpointError(GkdError):
    """Weights or a checkpoint that are missing, damaged, unsafe or of another network."""
