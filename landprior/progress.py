"""Progress on stderr: a bar on a terminal, lines in a log. Used by every loop that reports progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOTHING_YET = "{desc}: {elapsed}{postfix}"
_RECEIVED = "{desc}: {n_fmt}{unit} received in {elapsed}{postfix}"
TENTHS = 10
"""Number of log lines of a stage of known length."""


def has_bars() -> bool:
    """Say whether stderr can redraw a bar: a terminal or a notebook can; a log, a pipe or a dumb terminal cannot."""
    if "ipykernel" in sys.modules:
        return True
    try:
        terminal = sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
    return terminal and os.environ.get("TERM") != "dumb"


class Progress:
    """One stage of work: a bar where :func:`has_bars`, else log lines of level INFO.

    In a log, a stage of ten or more parts gets a line at the start and after each tenth, with the rate and the
    time left. No line contains a carriage return.

    Parameters
    ----------
    total
        Number of parts of the stage; None if unknown, in which case there is one line at the end.
    label, unit
        Names of the stage and of a part, for example ``"qr"`` and ``"step"``. ``"B"`` counts bytes.
    show
        Whether to show anything.
    done
        Parts already done by the run that is resumed.
    leave
        Whether to leave the bar on the terminal at the end.
    """

    def __init__(
        self, total: int | None, label: str, unit: str, *, show: bool = True, done: int = 0, leave: bool = False
    ) -> None:
        self._total, self._label, self._unit = total, label or "progress", unit
        self._before = self._done = done
        self._note = ""
        self._bar: tqdm[Never] | None = None
        self._lines = False
        self._start = time.monotonic()
        if not show:
            return
        if has_bars():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, leave=leave, **_style_bar(total, unit))
        else:
            self._lines = True
            if total is not None and total >= TENTHS:
                after = f", {done} of them done before" if done else ""
                logger.info("%s: %s%s", self._label, _count(total, unit), after)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, parts: int = 1) -> None:
        """Add finished parts."""
        before, self._done = self._done, self._done + parts
        if self._bar is not None:
            if parts and self._unit == "B" and self._total is None:
                self._bar.bar_format = _RECEIVED
            self._bar.update(parts)
        elif self._lines and self._total and self._tenth(self._done) > self._tenth(before):
            self._log()

    def note(self, text: str) -> None:
        """Show a text next to the count from now on, for example the loss."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._total is None:
            taken = _time(time.monotonic() - self._start)
            if self._done or self._unit != "B":
                logger.info("%s: %s in %s%s", self._label, _count(self._done, self._unit), taken, self._suffix())
            else:  # local files: nothing was received
                logger.info("%s: %s%s", self._label, taken, self._suffix())
            self._lines = False

    def _tenth(self, done: int) -> int:
        return min(done, self._total or 0) * TENTHS // max(self._total or 0, 1)

    def _log(self) -> None:
        total = self._total or 0
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._before) / seconds
        speed = f"{rate:.3g} {_plural(self._unit)}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s/{self._unit}"
        rest = (total - self._done) / rate if rate else 0.0
        timing = f"{_time(rest)} left" if self._done < total else f"took {_time(seconds)}"
        share = self._done * 100 // max(total, 1)
        logger.info(
            "%s: %3d %%, %d of %s, %s, %s%s",
            self._label,
            share,
            self._done,
            _count(total, self._unit),
            speed,
            timing,
            self._suffix(),
        )

    def _suffix(self) -> str:
        return f", {self._note}" if self._note else ""


def track(items: Iterable[T], label: str, unit: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Yield the items one by one and show the progress.

    Parameters
    ----------
    items
        Items to iterate over.
    label, unit, show
        See :class:`Progress`.
    total
        Number of items; None: ``len(items)``, if it has one.

    Yields
    ------
    object
        The items.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, label, unit, show=show) as progress:
        for item in items:
            yield item
            progress.update()


def _style_bar(total: int | None, unit: str) -> dict[str, Any]:
    if unit == "B" and total is None:
        return {"unit": unit, "unit_scale": True, "unit_divisor": 1024, "bar_format": _NOTHING_YET}
    return {"unit": unit}


def _count(number: int, unit: str) -> str:
    if unit == "B":
        size = float(number)
        for name in ("bytes", "KiB", "MiB", "GiB"):
            if size < 1024 or name == "GiB":
                return f"{size:.3g} {name}" if name != "bytes" else f"{number} bytes"
            size /= 1024
    return f"{number} {unit if number == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _time(seconds: float) -> str:
    """Return a time as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
