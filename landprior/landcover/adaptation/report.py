"""What an adaptation reports: how good maps are at the points, and whether more points would pay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from landprior.landcover.adaptation.fitting import Share  # noqa: TC001 - reading a report needs it

FEW = 5
"""A class with fewer points is hardly learned from them."""

WORTHWHILE = 0.01
"""Gain by the second half of the points from which more of them are recommended."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How good maps are at the points, with 95 % intervals.

    Parameters
    ----------
    points
        Number of points used.
    classes
        Name of each class -> its number of points.
    ridge
        The penalty that was chosen.
    prior
        The prior's most probable class.
    plain
        The finished map without points.
    half
        The adapted map if only half of the other points are used.
    adapted
        The adapted map; each point is mapped by a head that was fitted without it and its neighbours.
    designed
        Whether all points carry the design of a probability sample, by which they are weighted.
    proposed
        How many were proposed where a map was unsure (``landprior sample --for adapt``).
    marks
        Hashes of the places of the points (:func:`landprior.sources.point_marks.mark_points`), separated by blanks.
    """

    points: int
    classes: dict[str, int]
    ridge: float
    prior: Share
    plain: Share
    half: Share
    adapted: Share
    designed: bool
    proposed: int
    marks: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a table with a line of advice."""
        counts = ", ".join(f"{name} {count}" for name, count in self.classes.items() if count)
        rows = {
            "prior": self.prior,
            "map without points": self.plain,
            "adapted, half of the points": self.half,
            "adapted": self.adapted,
        }
        lines = [
            f"{self.points} points ({counts})",
            "accuracy at points that the fit has not seen, with its 95 % interval:",
            *(f"  {name:<28} {one.value:.3f}   {one.low:.3f} to {one.high:.3f}" for name, one in rows.items()),
            self.advise(),
        ]
        if self.proposed:
            lines.append(
                f"{self.proposed} points were proposed where a map was unsure, so the place as a whole is mapped better"
            )
        elif not self.designed:
            lines.append("the interval holds if the points are a random sample of the place")
        return "\n".join(lines)

    def advise(self) -> str:
        """Say whether the points helped, and whether more would."""
        gain, last = self.adapted.value - self.plain.value, self.adapted.value - self.half.value
        if gain < 0:
            return "the points do not improve the map; check their classes and positions, or keep the map without them"
        few = [name for name, count in self.classes.items() if 0 < count < FEW]
        lacking = f"; label more points of {', '.join(few)}" if few else ""
        if last > WORTHWHILE:
            return f"the second half of the points added {100 * last:.0f} %: more of them are likely to pay{lacking}"
        return f"the second half of the points added little: more of them are not likely to pay{lacking}"
