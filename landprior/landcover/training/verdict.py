"""Judging a training without labels: whether its map has settled, and whether it is worse than its prior.

A *snapshot* maps fixed crops of the tiles with the posterior r. Three things are read off it:

- how many pixels changed class since the last snapshot. Below ``TileSettings.settled`` the training may end: longer
  only fits the prior's own errors.
- which classes r names against the network's own word. r divides q by its mean over the tile, so a class that the
  network nowhere finds (q small and flat) is named in a few places by the prior alone. A class is not supported, and
  maps leave it out, if r names less than :data:`LEAST_FOUND` of what the prior expects of it, and the network, where r
  does name it, gives it less than :data:`LEAST_SUPPORT` on average.
- how right the map is, by moments. Let y be the true class, a the map's, p the prior. If p is calibrated and the
  map's errors do not depend on the prior given y, then with T(k, c) = P(a = k | y = c)

      mean_i [a_i = k] p_i(l)  =  sum_c T(k, c) mean_i p_i(c) p_i(l),

  both sides known but for T, which non-negative least squares gives; the map's estimated accuracy is
  sum_c pbar(c) T(c, c). This is the forward model of learning from noisy labels (Patrini et al., CVPR 2017) with the
  prior in the part of the noisy labels. The same formula for the prior's own most probable class, which is a
  function of p and so comes out too high, is the yardstick. Real priors are not calibrated either, so only a clear loss
  counts: a map whose estimate is more than :data:`CLEAR_LOSS` below that, or whose image tells nothing of the prior's
  classes (:data:`LEAST_EVIDENCE`), is given up, and the prior is handed back ("abstained").
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from landprior.errors import HarmWarning
from landprior.implicit.networks import FCN_HALO, log_prior
from landprior.implicit.posterior import log_posterior

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from landprior.landcover.training.model import BandStatistics
    from landprior.landcover.training.tiles import Tile

SNAPSHOT_PIXELS = 512 * 512
"""How many pixels a snapshot takes in all."""

CROP = 128
"""Side of the crops of a tile that is larger than its share of the snapshot, pixels."""

MOST_TILES = 64
"""How many tiles of a joint model are looked at."""

CLEAR_LOSS = 0.05
"""How far below its prior's a map's estimated accuracy may lie; docs/results/accuracy.md scores this choice."""

LEAST_EVIDENCE = 0.05
"""Evidence, in nats, below which the classes have no hold in the image (q is flat, or has collapsed)."""

LEAST_SUPPORT = 0.5
"""Mean q over the pixels that r gives a class, below which the network does not stand behind it."""

LEAST_FOUND = 0.5
"""Share of a class on the map, as a part of its mean in the prior, below which it was not found."""

LEAST_PIXELS = 100
"""Pixels, away from the borders of what is looked at, below which nothing can be judged, and a model is given up."""

Decision = Literal["kept", "abstained"]


@dataclass(frozen=True)
class _Crop:
    """A piece of a tile, ready for the network; ``inner`` leaves out the border that sees padding."""

    tile: int
    rows: slice
    columns: slice
    inputs: Tensor
    log_prior: Tensor
    valid: Tensor

    @property
    def inner(self) -> tuple[slice, slice]:
        return (
            slice(self.rows.start + FCN_HALO, self.rows.stop - FCN_HALO),
            slice(self.columns.start + FCN_HALO, self.columns.stop - FCN_HALO),
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is decided about a model, by its last snapshot; a figure that is not known is None.

    Parameters
    ----------
    decision
        Whether the model's maps are used, or its prior is handed back.
    why
        The reason, for people.
    pixels, estimate, prior_estimate, evidence, change, support, found, unsupported
        See :class:`Snapshot`.
    """

    decision: Decision
    why: str
    pixels: int
    estimate: float | None
    prior_estimate: float | None
    evidence: float | None
    change: float | None
    support: list[float | None]
    found: list[float | None]
    unsupported: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is kept in a model's record."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What was seen at one moment of a training.

    Parameters
    ----------
    maps
        Per crop: index of the tile, rows and columns in it, and the most probable class of r there, -1 where not
        valid, shape (h, w).
    change
        Share of pixels whose class changed since the last snapshot; NaN at the first.
    evidence
        Mean log p(x) + log N in nats [R eq. 1]: how much the image tells of the prior's classes; at most 0
        where it tells nothing.
    estimate, prior_estimate
        The two.
    support, found
        For each class the mean of q over the pixels where r names it (NaN where it names none), and their share of the
        pixels as a part of the prior's mean of the class.
    pixels
        How many pixels all this is of; where there is none, the figures are NaN.
    """

    maps: list[tuple[int, tuple[slice, slice], Tensor]]
    change: float
    evidence: float
    estimate: float
    prior_estimate: float
    support: tuple[float, ...] = ()
    found: tuple[float, ...] = ()
    pixels: int = SNAPSHOT_PIXELS

    @property
    def gain(self) -> float:
        """Estimated accuracy of the map less that of its prior."""
        return self.estimate - self.prior_estimate

    @property
    def unsupported(self) -> list[int]:
        """Positions of the classes that r names and that nothing but the prior speaks for."""
        pairs = enumerate(zip(self.support, self.found, strict=True))
        return [index for index, (support, found) in pairs if support < LEAST_SUPPORT and found < LEAST_FOUND]

    def judge(self) -> Verdict:
        """Return the verdict: decision, why, and the figures."""
        decision: Decision = "abstained"
        if self.pixels == 0:
            why = f"there is nothing to judge by: no pixel is valid more than {FCN_HALO} px away from the borders"
        elif self.pixels < LEAST_PIXELS:
            why = f"there are too few pixels to judge by: {self.pixels}, and {LEAST_PIXELS} are needed"
        elif self.evidence < LEAST_EVIDENCE:
            figures = f"evidence {self.evidence:.3f} nats, and {LEAST_EVIDENCE} are needed"
            why = f"the image tells nothing of the prior's classes: {figures}"
        else:
            decision = "kept" if self.gain >= -CLEAR_LOSS else "abstained"
            why = f"estimated accuracy {self.gain:+.3f} against the prior's own; the least accepted is {-CLEAR_LOSS}"
        return Verdict(
            decision=decision,
            why=why,
            pixels=self.pixels,
            estimate=_round(self.estimate),
            prior_estimate=_round(self.prior_estimate),
            evidence=_round(self.evidence),
            change=_round(self.change),
            support=[_round(value) for value in self.support],
            found=[_round(value) for value in self.found],
            unsupported=self.unsupported,
        )


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


class Judge:
    """Looks at a network in training.

    Parameters
    ----------
    tiles, statistics
        What it is trained on, on the network's device.
    smoothing
        Added to the prior.
    """

    def __init__(self, tiles: Sequence[Tile], statistics: BandStatistics, *, smoothing: float) -> None:
        self._crops = list(_take_crops(tiles, statistics, smoothing))
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def take_snapshot(self, network: nn.Module) -> Snapshot:
        """Map the crops and say what is seen; the change is against the call before."""
        inside = (..., slice(FCN_HALO, -FCN_HALO), slice(FCN_HALO, -FCN_HALO))
        cores = [(network(c.inputs)[inside], c.log_prior[inside], c.valid[inside]) for c in self._crops]
        total = sum(int(valid.sum()) for _, _, valid in cores)
        if not total:
            nothing = [torch.full(valid.shape[1:], -1) for _, _, valid in cores]
            maps = [(c.tile, c.inner, best) for c, best in zip(self._crops, nothing, strict=True)]
            nan = math.nan
            return Snapshot(maps=maps, change=nan, evidence=nan, estimate=nan, prior_estimate=nan, pixels=0)
        sums = torch.stack([(log_q.exp().double() * valid[:, None]).sum((0, 2, 3)) for log_q, _, valid in cores]).sum(0)
        log_marginal = torch.log(sums / total).float()
        best, evidence = [], 0.0
        classes = len(log_marginal)
        named, given = torch.zeros((2, classes), dtype=torch.float64, device=log_marginal.device)
        moments = torch.zeros((3, classes, classes), dtype=torch.float64)
        for log_q, log_p, valid in cores:
            joint = torch.logsumexp(log_q + log_p - log_marginal.reshape(1, -1, 1, 1), dim=1)
            evidence += float(joint[valid].double().sum())
            mapped = log_posterior(log_q, log_p, log_marginal=log_marginal, check=False).argmax(1)
            named += torch.bincount(mapped[valid], minlength=classes)
            given.index_add_(0, mapped[valid], log_q.gather(1, mapped[:, None])[:, 0][valid].exp().double())
            prior = log_p.exp().movedim(1, -1)[valid].double()
            choices = (prior, _one_hot(mapped[valid], classes), _one_hot(log_p.argmax(1)[valid], classes))
            moments += torch.stack([(chosen.T @ prior).cpu() for chosen in choices])
            best.append(torch.where(valid, mapped, -1)[0])
        change = math.nan
        if self._before is not None:
            change = sum(int((a != b).sum()) for a, b in zip(best, self._before, strict=True)) / total
        self._before = best
        own, mapped_moments, prior_moments = (moments / total).numpy()
        return Snapshot(
            maps=[(c.tile, c.inner, b) for c, b in zip(self._crops, best, strict=True)],
            change=change,
            evidence=evidence / total,
            estimate=estimate_accuracy(mapped_moments, own),
            prior_estimate=estimate_accuracy(prior_moments, own),
            support=tuple((given / named).tolist()),  # 0 / 0 is NaN
            found=tuple((named.cpu() / total / torch.from_numpy(own.sum(axis=1)).clamp_min(1e-6)).tolist()),
            pixels=total,
        )


def estimate_accuracy(moments: NDArray[np.float64], prior_moments: NDArray[np.float64]) -> float:
    """Estimate a map's accuracy from its moments with a prior; see the module's head.

    Parameters
    ----------
    moments
        mean_i [a_i = k] p_i(l), shape (C, C).
    prior_moments
        mean_i p_i(c) p_i(l), shape (C, C).

    Returns
    -------
    float
        sum_c pbar(c) T(c, c), in 0..1.
    """
    from scipy.optimize import nnls

    count = len(prior_moments)
    share = prior_moments.sum(axis=1)
    scale = 1 / np.sqrt(np.maximum(share, 1e-6))  # each class of the prior weighs by its own spread
    # Unknowns T(k, c), row by row; the last rows ask that each column of T sums to one.
    fit = np.kron(np.eye(count), (prior_moments * scale).T)
    whole = np.kron(np.ones((1, count)), np.eye(count)) * 10 * np.sqrt(share)[:, None]
    wanted = np.concatenate([(moments * scale).ravel(), 10 * np.sqrt(share)])
    confusion = nnls(np.concatenate([fit, whole]), wanted)[0].reshape(count, count)
    return float(min(1.0, (np.diag(confusion) * share).sum() / share.sum()))


def _one_hot(classes: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(classes, count).double()


def _take_crops(tiles: Sequence[Tile], statistics: BandStatistics, smoothing: float) -> Iterator[_Crop]:
    """Take whole tiles where they are small, evenly spread crops where not."""
    chosen = np.linspace(0, len(tiles) - 1, min(len(tiles), MOST_TILES)).round().astype(int)
    for index in chosen.tolist():
        tile = tiles[index]
        for rows, columns in _choose_places(tile.valid, SNAPSHOT_PIXELS // len(chosen)):
            valid = tile.valid[rows, columns]
            x = tile.inputs(statistics, rows, columns)[None]
            yield _Crop(
                tile=index,
                rows=rows,
                columns=columns,
                inputs=x.contiguous(memory_format=torch.channels_last),
                log_prior=log_prior(tile.prior[None, :, rows, columns].float(), smoothing=smoothing),
                valid=valid[None],
            )


def _choose_places(valid: Tensor, share: int) -> list[tuple[slice, slice]]:
    """Choose the crops of a tile: evenly spread; where most is nodata, where the data is."""
    height, width = valid.shape
    if height * width <= share:
        return [(slice(0, height), slice(0, width))]
    along = max(1, round(math.sqrt(share) / CROP))
    side = max(2 * FCN_HALO + 1, int(math.sqrt(share) / along))
    tall, wide = min(side, height), min(side, width)

    def spread(down: int, across: int) -> list[tuple[slice, slice]]:
        tops = np.linspace(0, height - tall, down).astype(int).tolist()
        lefts = np.linspace(0, width - wide, across).astype(int).tolist()
        return [(slice(top, top + tall), slice(left, left + wide)) for top in tops for left in lefts]

    even = spread(along, along)
    if sum(int(valid[place].sum()) for place in even) >= tall * wide * len(even) / 2:
        return even
    dense = spread(-(-height // tall), -(-width // wide))
    chosen = sorted(dense, key=lambda place: -int(valid[place].sum()))[: len(even)]
    if sum(_count_inner(valid, place) for place in chosen) >= LEAST_PIXELS:
        return chosen
    # what there is lies where crops meet: take crops whose insides meet
    closer = spread(*(-(-(n - 2 * FCN_HALO) // (side - 2 * FCN_HALO)) for n, side in ((height, tall), (width, wide))))
    return sorted(closer, key=lambda place: -_count_inner(valid, place))[: len(even)]


def _count_inner(valid: Tensor, place: tuple[slice, slice]) -> int:
    """Count valid pixels of a crop away from its border."""
    rows, columns = (slice(span.start + FCN_HALO, span.stop - FCN_HALO) for span in place)
    return int(valid[rows, columns].sum())


def warn_of_harm(verdict: Verdict) -> None:
    """Warn where the verdict is not that the model is kept."""
    if verdict.decision != "kept":
        lead = "looks worse than its prior" if verdict.pixels >= LEAST_PIXELS else "cannot be judged"
        warnings.warn(
            f"this model {lead} ({verdict.why}); predict --posterior will hand back the prior. "
            "Try another --seed, a better cooccurrence matrix or more layers in the prior",
            HarmWarning,
            stacklevel=3,
        )
