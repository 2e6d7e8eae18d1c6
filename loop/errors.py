"""The errors that a person can mend, each with the exit code that the command line ends with."""


class AlignloopError(Exception):
    """Something is wrong that one line can explain: the message names what, where and what to do."""

    exit_code = 1


class DataError(AlignloopError):
    """A file or row that cannot be read as what it should be."""


class AssetError(AlignloopError):
    """A model or data file that could not be had, or is not the one that was pinned."""


class ConfigError(AlignloopError):
    """A wrong key or value in a config or on the command line."""

    exit_code = 2


class RunMismatch(ConfigError):
    """A run directory was made from another config, prompt, seed or asset than this one."""


class GuardStop(AlignloopError):
    """A guard (critic validity, pair audit, coverage, diversity) stopped the run."""

    exit_code = 5
