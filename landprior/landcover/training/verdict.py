"""Judging a training without labels: whether its map has settled, and whether it is worse than its prior.

A *snapshot* maps fixed crops of the tiles with the posterior r. It gives three measures:

- how many pixels changed class since the last snapshot. Below ``TileSettings.settled`` the training may end:
  continuing only fits the prior's own errors.
- which classes the network does not support. r divides q by its mean over the tile, so a class that the network finds
  nowhere (q small and flat) is mapped in a few places by the prior alone. A class is unsupported, and left out of
  maps, if r maps less than :data:`LEAST_FOUND` of what the prior expects and the network, where r maps the class,
  gives it less than :data:`LEAST_SUPPORT` on average.
- how accurate the map is, by moments. Let y be the true class, a the map's, p the prior. If p is calibrated and the
  map's errors do not depend on the prior given y, then with T(k, c) = P(a = k | y = c)

      mean_i [a_i = k] p_i(l)  =  sum_c T(k, c) mean_i p_i(c) p_i(l),

  where everything but T is known, which non-negative least squares gives; the map's estimated accuracy is
  sum_c pbar(c) T(c, c). This is the forward model of learning from noisy labels (Patrini et al., CVPR 2017), with the
    prior in place of the noisy labels. The same estimate for the prior's own most probable class, which is a function
    of p and so comes out too high, is the reference. Real priors are not calibrated either, so only a clear loss
    counts: if a map's estimate is more than :data:`CLEAR_LOSS` below the reference, or its image carries no information
    about the prior's classes (:data:`LEAST_EVIDENCE`), the map is rejected and the prior used instead ("abstained").
"""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

SNAPSHOT_PIXELS = 512 * 512
"""Total number of pixels in a snapshot."""

CROP = 128
"""Side of the crops taken from a tile larger than its share of the snapshot, pixels."""

MOST_TILES = 64
"""Maximum number of tiles examined for a joint model."""

CLEAR_LOSS = 0.05
"""Accepted loss of a map's estimated accuracy against its prior's; evaluated in docs/results/accuracy.md."""

LEAST_EVIDENCE = 0.05
"""Evidence, in nats, below which the image does not support the classes (q is flat, or has collapsed)."""

LEAST_SUPPORT = 0.5
"""Mean q over a class's pixels in r below which the network does not support the class."""

LEAST_FOUND = 0.5
"""Share of a class on the map, relative to its mean in the prior, below which it was not found."""

FAR = 0.09
"""Distance of the named shares from the prior's above which the matrix may not fit the place: so in all five runs of
the development and test sets that did harm, and, Phoenix aside, in none of thirty that did good."""

LEAST_PIXELS = 100
"""Minimum number of pixels, away from the borders of crops, for a verdict; with fewer the model is rejected."""

Decision = Literal["kept", "abstained"]


@dataclass(frozen=True)
class _Crop:
    """A piece of a tile, ready for the network; ``inner`` leaves out the border affected by padding."""

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
    pixels, estimate, prior_estimate, evidence, change, support, found, unsupported, distance
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
    distance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is kept in a model's record."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Measures at one moment of a training.

    Parameters
    ----------
    maps
        Per crop: index of the tile, rows and columns in it, and the most probable class of r there, -1 where not
        valid, shape (h, w).
    change
        Share of pixels whose class changed since the last snapshot; NaN at the first.
    evidence
        Mean log p(x) + log N in nats [R eq. 1]: how much information the image carries about the prior's classes; at
        most 0 if none.
    estimate, prior_estimate
        Estimated accuracy of the map and of the prior.
    support, found
        For each class the mean of q over the pixels where r names it (NaN where it names none), and their share of
        pixels relative to the prior's mean of the class.
    pixels
        Number of pixels measured; if there are none, the figures are NaN.
    distance
        Total variation between the shares of the classes that q names and their means in the prior, 0 to 1.
    """

    maps: list[tuple[int, tuple[slice, slice], Tensor]]
    change: float
    evidence: float
    estimate: float
    prior_estimate: float
    support: tuple[float, ...] = ()
    found: tuple[float, ...] = ()
    pixels: int = SNAPSHOT_PIXELS
    distance: float = math.nan

    @property
    def gain(self) -> float:
        """Estimated accuracy of the map minus that of its prior."""
        return self.estimate - self.prior_estimate

    @property
    def unsupported(self) -> list[int]:
        """Positions of the classes that are on the map only because of the prior."""
        pairs = enumerate(zip(self.support, self.found, strict=True))
        return [index for index, (support, found) in pairs if support < LEAST_SUPPORT and found < LEAST_FOUND]

    def judge(self) -> Verdict:
        """Return the verdict: decision, reason and figures."""
        decision: Decision = "abstained"
        if self.pixels == 0:
            why = f"the map cannot be judged: no pixel is valid more than {FCN_HALO} px away from the borders"
        elif self.pixels < LEAST_PIXELS:
            why = f"there are too few pixels to judge the map: {self.pixels} of at least {LEAST_PIXELS}"
        elif self.evidence < LEAST_EVIDENCE:
            figures = f"evidence {self.evidence:.3f} nats, at least {LEAST_EVIDENCE} needed"
            why = f"the image carries no information about the prior's classes: {figures}"
        else:
            decision = "kept" if self.gain >= -CLEAR_LOSS else "abstained"
            why = f"estimated accuracy {self.gain:+.3f} against the prior's own; the minimum is {-CLEAR_LOSS}"
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
            distance=_round(self.distance),
        )


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


class Judge:
    """Judge a network during training.

    Parameters
    ----------
    tiles, statistics
        The training tiles and their statistics, on the network's device.
    smoothing
        Constant added to the prior.
    """

    def __init__(self, tiles: Sequence[Tile], statistics: BandStatistics, *, smoothing: float) -> None:
        self._crops = list(_take_crops(tiles, statistics, smoothing))
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def take_snapshot(self, network: nn.Module) -> Snapshot:
        """Map the crops and return the measures; the change is relative to the previous call."""
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
        chosen_by_q = torch.zeros(classes, dtype=torch.float64, device=log_marginal.device)
        moments = torch.zeros((3, classes, classes), dtype=torch.float64)
        for log_q, log_p, valid in cores:
            joint = torch.logsumexp(log_q + log_p - log_marginal.reshape(1, -1, 1, 1), dim=1)
            evidence += float(joint[valid].double().sum())
            mapped = log_posterior(log_q, log_p, log_marginal=log_marginal, check=False).argmax(1)
            named += torch.bincount(mapped[valid], minlength=classes)
            chosen_by_q += torch.bincount(log_q.argmax(1)[valid], minlength=classes)
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
            distance=float(np.abs(chosen_by_q.cpu().numpy() / total - own.sum(axis=1)).sum() / 2),
        )


def estimate_accuracy(moments: NDArray[np.float64], prior_moments: NDArray[np.float64]) -> float:
    """Estimate a map's accuracy from its moments with a prior; see the module docstring.

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
    scale = 1 / np.sqrt(np.maximum(share, 1e-6))  # each class of the prior is weighted by its own spread
    # Unknowns T(k, c), row by row; the last rows require each column of T to sum to one.
    fit = np.kron(np.eye(count), (prior_moments * scale).T)
    whole = np.kron(np.ones((1, count)), np.eye(count)) * 10 * np.sqrt(share)[:, None]
    wanted = np.concatenate([(moments * scale).ravel(), 10 * np.sqrt(share)])
    confusion = nnls(np.concatenate([fit, whole]), wanted)[0].reshape(count, count)
    return float(min(1.0, (np.diag(confusion) * share).sum() / share.sum()))


def _one_hot(classes: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(classes, count).double()


def _take_crops(tiles: Sequence[Tile], statistics: BandStatistics, smoothing: float) -> Iterator[_Crop]:
    """Take whole tiles if they are small, otherwise evenly spread crops."""
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
    """Choose the crops of a tile: evenly spread, or where the data is if most pixels are nodata."""
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
    # the data lies where crops meet: take crops whose interiors meet
    closer = spread(*(-(-(n - 2 * FCN_HALO) // (side - 2 * FCN_HALO)) for n, side in ((height, tall), (width, wide))))
    return sorted(closer, key=lambda place: -_count_inner(valid, place))[: len(even)]


def _count_inner(valid: Tensor, place: tuple[slice, slice]) -> int:
    """Count valid pixels of a crop away from its border."""
    rows, columns = (slice(span.start + FCN_HALO, span.stop - FCN_HALO) for span in place)
    return int(valid[rows, columns].sum())


def warn_of_misfit(distance: float | None) -> None:
    """Log a warning if the shares that a network names are far from its prior's, and what to do about it."""
    if distance is not None and distance > FAR:
        logger.warning(
            "the classes named differ from the prior's shares (distance %.2f, usual up to %.2f): the cooccurrence "
            "matrix may not fit this place, and classes may be swapped. About 100 labelled points correct that: "
            "landprior sample MAP --count 100 -o points.gpkg, label them, and "
            "landprior adapt --model MODEL --image IMAGE --prior PRIOR --points points.gpkg -o adapted.safetensors",
            distance,
            FAR,
        )


def warn_of_harm(verdict: Verdict) -> None:
    """Warn if the verdict is not to keep the model, or the matrix may not fit."""
    if verdict.decision == "kept":
        warn_of_misfit(verdict.distance)
    if verdict.decision != "kept":
        lead = "looks worse than its prior" if verdict.pixels >= LEAST_PIXELS else "cannot be judged"
        warnings.warn(
            f"this model {lead} ({verdict.why}); predict --posterior will map the prior instead. "
            "Try another --seed, a better cooccurrence matrix or more layers in the prior",
            HarmWarning,
            stacklevel=3,
        )
