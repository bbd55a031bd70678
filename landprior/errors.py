"""Every error and warning that landprior raises on purpose.

All errors derive from :class:`LandpriorError`, and each also from the builtin that callers
already catch. The text says what is wrong, where, and what to do next; the command line prints
it as one line.
"""

from __future__ import annotations


class LandpriorError(Exception):
    """Root of all errors raised on purpose by landprior."""


class InputError(LandpriorError, ValueError):
    """Input data or an option does not make sense."""


class GridMismatchError(InputError):
    """Two rasters that must share one grid do not."""


class NoOverlapError(GridMismatchError):
    """Two rasters have no place in common."""


class SchemeError(InputError):
    """A class scheme is missing, malformed or does not know a code."""


class PriorError(InputError):
    """A prior, or what it is built from, cannot be used."""


class ProbabilityError(InputError):
    """The input of a loss or posterior is not a log of probabilities, or does not fit the rest."""


class ModelError(InputError):
    """A model file cannot be used, or does not fit the data."""


class ConfigError(InputError):
    """A preset or configuration file is malformed or unknown."""


class MissingInputError(LandpriorError, FileNotFoundError):
    """A file that is needed does not exist."""


class OutputExistsError(LandpriorError, FileExistsError):
    """A result is already there and may not be replaced."""


class OutputBusyError(LandpriorError, RuntimeError):
    """Another process is writing the same result."""


class RasterReadError(LandpriorError, OSError):
    """A raster cannot be opened or read, or is damaged."""


class RasterWriteError(LandpriorError, OSError):
    """A raster cannot be written."""


class TrainingError(LandpriorError, RuntimeError):
    """Training cannot go on."""


class TrainingInterruptedError(LandpriorError, RuntimeError):
    """Training was stopped by the user; a checkpoint was kept."""


class SourceError(LandpriorError, ConnectionError):
    """A source of data did not give what it should; nothing of it was kept.

    Parameters
    ----------
    message
        What went wrong.
    source
        Name of the source, if the message names it and the remedy, so that neither is added again.
    """

    def __init__(self, message: str, *, source: str = "") -> None:
        super().__init__(message)
        self.source = source


class DiscardedError(SourceError):
    """What was kept of a file was damaged, or of another version, and was deleted; reading it again may help."""


class SourceBusyError(SourceError):
    """A source is overloaded, or cannot be reached, for now."""

    def __init__(self, message: str, *, wait: float | None = None, source: str = "") -> None:
        super().__init__(message, source=source)
        self.wait = wait


class OfflineError(SourceError):
    """Something is not in the cache, and the network may not be used."""


class FetchInterruptedError(LandpriorError, RuntimeError):
    """Fetching was stopped by the user; what is whole was kept."""


class LandpriorWarning(UserWarning):
    """Root of all warnings issued by landprior."""


class CollapseWarning(LandpriorWarning):
    """The network predicts one class (nearly) everywhere: the degenerate solution."""


class HarmWarning(LandpriorWarning):
    """The trained posterior looks worse than its prior."""


class CheckpointWarning(LandpriorWarning):
    """The state of an interrupted training cannot be used."""


class CooccurrenceWarning(LandpriorWarning):
    """Part of a cooccurrence matrix rests on a fallback, not on data."""


class SourceWarning(LandpriorWarning):
    """A source had something other than was asked for, or nothing."""


class TableWarning(LandpriorWarning):
    """Part of a table is of no use."""


class DirectionWarning(LandpriorWarning):
    """A model predicts its target where the prior says that there is less of it."""


class FormerNameWarning(LandpriorWarning, FutureWarning):
    """A former name, of an option say, was used; it will stop working in a later release."""
