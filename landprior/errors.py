"""All errors and warnings that landprior raises deliberately.

All errors derive from :class:`LandpriorError`, and also from the builtin exception that callers
already catch. The message says what is wrong, where, and what to do; the command line prints
it as one line.
"""

from __future__ import annotations


class LandpriorError(Exception):
    """Base class of all errors raised deliberately by landprior."""


class InputError(LandpriorError, ValueError):
    """Input data or an option is invalid."""


class GridMismatchError(InputError):
    """Two rasters that must be on the same grid are not."""


class NoOverlapError(GridMismatchError):
    """Two rasters do not overlap."""


class SchemeError(InputError):
    """A class scheme is missing, malformed or lacks a code."""


class PriorError(InputError):
    """A prior, or its inputs, cannot be used."""


class ProbabilityError(InputError):
    """The input of a loss or posterior is not a log of probabilities, or does not match the other arguments."""


class ModelError(InputError):
    """A model file cannot be used, or does not match the data."""


class ConfigError(InputError):
    """A preset or configuration file is malformed or unknown."""


class MissingInputError(LandpriorError, FileNotFoundError):
    """A required file does not exist."""


class OutputExistsError(LandpriorError, FileExistsError):
    """A result already exists and may not be replaced."""


class OutputBusyError(LandpriorError, RuntimeError):
    """Another process is writing the same result."""


class RasterReadError(LandpriorError, OSError):
    """A raster cannot be opened or read, or is damaged."""


class RasterWriteError(LandpriorError, OSError):
    """A raster cannot be written."""


class TrainingError(LandpriorError, RuntimeError):
    """Training cannot continue."""


class TrainingInterruptedError(LandpriorError, RuntimeError):
    """Training was stopped by the user; a checkpoint was saved."""


class SourceError(LandpriorError, ConnectionError):
    """A data source gave an invalid response, which was not kept.

    Parameters
    ----------
    message
        The problem.
    source
        Name of the source, if the message already includes it and the remedy.
    """

    def __init__(self, message: str, *, source: str = "") -> None:
        super().__init__(message)
        self.source = source


class DiscardedError(SourceError):
    """The cached part of a file was damaged or of another version, and was deleted; a retry may help."""


class SourceBusyError(SourceError):
    """A source is temporarily overloaded or unreachable."""

    def __init__(self, message: str, *, wait: float | None = None, source: str = "") -> None:
        super().__init__(message, source=source)
        self.wait = wait


class OfflineError(SourceError):
    """Data is not cached, and the network may not be used."""


class FetchInterruptedError(LandpriorError, RuntimeError):
    """Fetching was stopped by the user; finished downloads were kept."""


class LandpriorWarning(UserWarning):
    """Base class of all warnings issued by landprior."""


class CollapseWarning(LandpriorWarning):
    """The network predicts one class (nearly) everywhere: a collapsed solution."""


class HarmWarning(LandpriorWarning):
    """The trained posterior looks worse than its prior."""


class CheckpointWarning(LandpriorWarning):
    """The state of an interrupted training cannot be used."""


class CooccurrenceWarning(LandpriorWarning):
    """Part of a cooccurrence matrix is a fallback instead of data."""


class SourceWarning(LandpriorWarning):
    """A source had something other than requested, or nothing."""


class TableWarning(LandpriorWarning):
    """Part of a table is not used."""


class DirectionWarning(LandpriorWarning):
    """A model predicts its target where the prior expects less of it."""


class FormerNameWarning(LandpriorWarning, FutureWarning):
    """A former name, for example of an option, was used; it will stop working in a later release."""
