"""Training an epitome on tiles: patches, location promotion and diversification, in the shared training loop.

With plain gradient descent on the mixture's likelihood most positions of a large epitome stay unused, because those
that first explain a patch win all similar ones. "Mining self-similarity" (Malkin et al. 2020) has two remedies:
*location promotion* removes used positions from the mixture until nearly all have been used; *diversification*
learns from the worst explained patches.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from landprior.errors import InputError
from landprior.implicit.devices import make_fabric
from landprior.implicit.epitomes import Epitome, build_epitome
from landprior.implicit.objectives import Batch
from landprior.implicit.seeds import derive_seed
from landprior.implicit.training import fit
from landprior.landcover.training.tile_sets import require_compatible
from landprior.landcover.training.tiles import Tile, measure_bands
from landprior.run import Run
from landprior.superres.settings import EpitomeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from landprior.implicit.history import History
    from landprior.landcover.training.model import BandStatistics

DIVERSITY = 4
"""Diversification draws this many times more patches and learns from the worst explained 1 / this of them."""


class EpitomeFeed:
    """Cut random patches from tiles; the batch of a step depends only on (seed, step).

    Only patches with all pixels valid are cut, with equal chances.

    Parameters
    ----------
    tiles
        Tiles on the training device.
    statistics
        Statistics for standardising the bands.
    patch, count
        Side in pixels and number of patches.
    seed
        See :func:`landprior.implicit.seeds.derive_seed`.
    shrink
        See :class:`EpitomeSettings`.

    Raises
    ------
    InputError
        If no patch is valid.
    """

    def __init__(
        self, tiles: Sequence[Tile], statistics: BandStatistics, *, patch: int, count: int, seed: int, shrink: int = 1
    ) -> None:
        require_compatible(tiles)
        self._statistics, self._side, self._count, self._seed = statistics, patch, count, seed
        self._images: list[Tensor] = []
        self._corners: list[Tensor] = []  # flat indices of the upper left pixels of valid patches
        for tile in tiles:
            image, valid = shrink_image(tile.image, tile.visible, shrink)
            self._images.append(image)
            self._corners.append(find_corners(valid, patch))
        total = sum(len(corners) for corners in self._corners)
        if not total:
            names = ", ".join(tile.name for tile in tiles[:3])
            msg = f"{names} have no {patch} x {patch} px without a gap; give larger tiles or a smaller patch"
            raise InputError(msg)
        self.patches = total

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step: inputs (count, B, patch, patch)."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, str(step)))
        chosen = (torch.rand(self._count, generator=generator, dtype=torch.float64) * self.patches).long()
        parts = []
        for image, corners in zip(self._images, self._corners, strict=True):
            mine = chosen[(chosen >= 0) & (chosen < len(corners))]
            chosen = chosen - len(corners)
            if len(mine):
                parts.append(cut_patches(image, corners[mine.to(corners.device)], self._side))
        return Batch(inputs=self._statistics.standardise(torch.cat(parts), None))


def shrink_image(image: Tensor, valid: Tensor, shrink: int) -> tuple[Tensor, Tensor]:
    """Average an image over squares of pixels.

    Rows and columns that do not fill a square are left out.

    Parameters
    ----------
    image
        Shape (B, H, W).
    valid
        Mask of valid pixels, shape (H, W).
    shrink
        Side of a square, pixels.

    Returns
    -------
    image : Tensor
        Shape (B, H // shrink, W // shrink).
    valid : Tensor
        False for a square with an invalid pixel.
    """
    if shrink == 1:
        return image, valid
    values = F.avg_pool2d(image[None].float(), shrink)[0]
    share = F.avg_pool2d(valid[None, None].float(), shrink)[0, 0]
    return values, share > 1 - 0.5 / shrink**2


def find_corners(valid: Tensor, patch: int) -> Tensor:
    """Return the flat indices of the upper left pixels of all patches without a gap; ``valid`` is (H, W)."""
    height, width = valid.shape
    if min(height, width) < patch:
        return torch.empty(0, dtype=torch.int64, device=valid.device)
    gaps = (~valid).float()[None, None]
    clear = F.max_pool2d(F.max_pool2d(gaps, (patch, 1), stride=1), (1, patch), stride=1)[0, 0] == 0
    rows, columns = torch.nonzero(clear, as_tuple=True)
    return rows * width + columns


def cut_patches(image: Tensor, corners: Tensor, patch: int) -> Tensor:
    """Cut square patches.

    Parameters
    ----------
    image
        Shape (B, H, W).
    corners
        Flat indices of upper left pixels, shape (n,).
    patch
        Side, pixels.

    Returns
    -------
    Tensor
        Shape (n, B, patch, patch).
    """
    side = torch.arange(patch, device=image.device)
    width = image.shape[-1]
    at = corners[:, None, None] + side[:, None] * width + side
    return image.flatten(1)[:, at].transpose(0, 1)


class _Learner(nn.Module):
    """The module trained by the loop: the epitome, on the worst explained patches if diversifying."""

    def __init__(self, epitome: Epitome, settings: EpitomeSettings) -> None:
        super().__init__()
        self.epitome, self._diversify = epitome, settings.diversify

    def forward(self, patches: Tensor) -> Tensor:
        """Return log p(x, s) of the patches to learn from."""
        if self._diversify and self.training:
            with torch.no_grad():
                known = self.epitome.unfold()
                worst = [
                    torch.logsumexp(self.epitome.evaluate(some, *known), dim=1)
                    for some in torch.chunk(patches, DIVERSITY)
                ]
                chosen = torch.topk(torch.cat(worst), len(patches) // DIVERSITY, largest=False).indices
            patches = patches[chosen]
        joint: Tensor = self.epitome(patches)
        return joint


class EpitomeObjective:
    """Negative mean log-likelihood, per value of a patch, with location promotion.

    Positions used since the last reset are excluded from the mixture, in value and gradient; the best of the
    others is then counted as used, with its neighbours. The counters are buffers of the epitome.
    """

    def __init__(self, epitome: Epitome, settings: EpitomeSettings) -> None:
        self._epitome, self._settings = epitome, settings
        self._values = epitome.bands * epitome.patch**2

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - the protocol's signature
        """Return the loss from log p(x, s), (n, S)."""
        if self._settings.promotion:
            output = output.masked_fill(self._epitome.used.flatten() > 0, -torch.inf)
        self._epitome.mark(
            output.detach().argmax(dim=1),
            self._settings.window,
            self._settings.promotion_share if self._settings.promotion else torch.inf,
        )
        return -torch.logsumexp(output, dim=1).mean() / self._values


def fit_epitome(
    tiles: Sequence[Tile],
    settings: EpitomeSettings | None = None,
    *,
    checkpoint: Path | None = None,
    run: Run = Run(),
) -> tuple[Epitome, BandStatistics, History]:
    """Train an epitome on tiles in memory.

    Parameters
    ----------
    tiles
        See :func:`landprior.landcover.training.tiles.read_tile`; their targets are ignored.
    settings
        See :class:`EpitomeSettings`.
    checkpoint
        Path for the state, saved after every epoch, so that an interrupted run can resume.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    epitome : Epitome
        The epitome of the image standardised by :func:`landprior.landcover.training.tiles.measure_bands`, in evaluation
        mode, on the device.
    statistics : BandStatistics
        Statistics used for standardising.
    history : History
        History of the training.

    Raises
    ------
    InputError
        If there is no tile, tiles have different bands, or no patch is valid.
    TrainingError, TrainingInterruptedError
        See :func:`landprior.implicit.training.fit`.
    """
    settings = settings or EpitomeSettings()
    if not tiles:
        msg = "there are no tiles to train an epitome on"
        raise InputError(msg)
    require_compatible(tiles)
    seed = derive_seed(settings.seed, "|".join(sorted(tile.name for tile in tiles)))
    fabric = make_fabric("fp32", run.device)
    on_device = [tile.to(fabric.device) for tile in tiles]
    statistics = measure_bands(on_device)
    feed = EpitomeFeed(
        on_device,
        statistics,
        patch=settings.patch,
        count=settings.patches * (DIVERSITY if settings.diversify else 1),
        seed=seed,
        shrink=settings.shrink,
    )
    epitome = build_epitome(int(tiles[0].image.shape[0]), seed=seed, variance=settings.variance, **settings.shape)
    history = fit(
        _Learner(epitome, settings),
        feed,
        settings.training,
        objective=EpitomeObjective(epitome, settings),
        fabric=fabric,
        checkpoint=checkpoint,
        identity=_identify(tiles, settings) if checkpoint is not None else "",
        progress=run.progress,
    )
    return epitome.eval(), statistics, history


def _identify(tiles: Sequence[Tile], settings: EpitomeSettings) -> str:
    """Return a hash of everything a run depends on."""
    sha = hashlib.sha256(settings.model_dump_json().encode())
    for tile in tiles:
        sha.update(tile.name.encode())
        for values in (tile.image, tile.visible):
            sha.update(values.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


@torch.no_grad()
def measure_use(epitome: Epitome, feed: EpitomeFeed, *, batches: int, first: int = 0) -> tuple[float, float]:
    """Measure the use of an epitome, without promotion.

    Parameters
    ----------
    epitome, feed
        A trained epitome, and patches on its device.
    batches, first
        Number of batches, and the first step of the feed.

    Returns
    -------
    unused : float
        Share of the torus's pixels not covered by the best position of any patch.
    likelihood : float
        Mean log p(x) per value of a patch, nats.
    """
    known = epitome.unfold()
    hits = torch.zeros(epitome.positions, dtype=torch.int64, device=epitome.mean.device)
    total = count = 0.0
    for step in range(first, first + batches):
        patches = feed(step).inputs
        joint = epitome.evaluate(patches, *known)
        hits += torch.bincount(joint.argmax(1), minlength=epitome.positions)
        total += torch.logsumexp(joint, dim=1).sum().item()
        count += len(patches)
    placed = hits.reshape(epitome.epitomes, 1, epitome.size, epitome.size).float()
    spread = (
        F.pad(placed, (epitome.patch - 1, 0, epitome.patch - 1, 0), mode="circular") if epitome.patch > 1 else placed
    )
    covered = F.max_pool2d(spread, epitome.patch, stride=1) > 0
    return 1 - covered.float().mean().item(), total / count / (epitome.bands * epitome.patch**2)
