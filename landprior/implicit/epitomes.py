"""Epitomes: a mixture of Gaussian patches whose means and variances are windows of one small torus.

An epitome is an N x N image on a torus; every position s is a component, the w x w window that starts there.
Neighbouring components share parameters, so a few hundred pixels per side represent tens of thousands of patches
(Malkin, Ortiz, Robinson, Jojic, "Mining self-similarity", 2020, after Jojic, Frey, Kannan 2003).

A posterior over all positions is one matrix product with the unfolded torus. For 7 x 7 patches an FFT would need about
as many operations (two transforms of a torus, and all bands, for each patch), of a kind that is several times slower
than products on CPUs, and with larger rounding errors.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import nn

from landprior.errors import InputError
from landprior.implicit.networks import PixelNetwork
from landprior.implicit.settings import PATCH, SIZE, VARIANCE_FLOOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


CHUNK_VALUES = 12_000_000
"""Floats of log p(x, s) in memory at a time (48 MB, and as much again for the softmax)."""


class Epitome(nn.Module):
    """One or several epitomes: log p(x, s) of a patch x at every position s.

    log p(x, s) = log p(s) + sum over bands and pixels (k, i, j) of log N(x_kij; mu_k,s+ij, var_k,s+ij), positions on a
    torus; p(s) is one distribution over the positions of all epitomes, so several are a mixture.

    Parameters
    ----------
    bands
        Bands B of a patch.
    size
        Side N of the torus.
    patch
        Side w of a patch, odd, at most ``size``.
    epitomes
        Number of epitomes (K).
    variance
        Initial variance, in units of the data squared.
    variance_floor
        The variance is exp(:attr:`log_variance`) + this.

    Attributes
    ----------
    mean, log_variance
        Parameters, (K, B, N, N).
    log_prior
        Parameter, (K, N, N): log p(s) before it is normalised over all K N N positions.
    floor
        Buffer: ``variance_floor``, so that a file of weights is complete.
    used
        Buffer, (K, N, N): number of times a position was used since the counters were last reset (location promotion).
    visits
        Buffer, (K, N, N): number of times it was the best position of a patch in the whole training.
    resets
        Buffer: number of resets of the counters.

    Raises
    ------
    InputError
        If the patch is even or larger than the torus, or a number is not positive.
    """

    floor: Tensor
    used: Tensor
    visits: Tensor
    resets: Tensor

    def __init__(
        self,
        bands: int,
        *,
        size: int = SIZE,
        patch: int = PATCH,
        epitomes: int = 1,
        variance: float = 1.0,
        variance_floor: float = VARIANCE_FLOOR,
    ) -> None:
        super().__init__()
        if min(bands, size, epitomes) < 1 or patch < 1 or patch % 2 == 0 or patch > size:
            msg = (
                f"an epitome of {bands} bands, {epitomes} x {size} x {size}, with {patch} px patches is not possible: "
                "patches must have an odd side, at most the epitome's"
            )
            raise InputError(msg)
        if not 0 <= variance_floor < variance:
            msg = f"a variance of {variance} must be above its floor, {variance_floor}, which must not be negative"
            raise InputError(msg)
        self.bands, self.size, self.patch, self.epitomes = bands, size, patch, epitomes
        # random, not constant: identical positions would remain identical
        self.mean = nn.Parameter(0.3 * torch.randn(epitomes, bands, size, size))
        self.log_variance = nn.Parameter(torch.full((epitomes, bands, size, size), math.log(variance - variance_floor)))
        self.log_prior = nn.Parameter(torch.zeros(epitomes, size, size))
        self.register_buffer("floor", torch.tensor(float(variance_floor)))
        self.register_buffer("used", torch.zeros(epitomes, size, size))
        self.register_buffer("visits", torch.zeros(epitomes, size, size, dtype=torch.int64))
        self.register_buffer("resets", torch.zeros((), dtype=torch.int64))

    @property
    def positions(self) -> int:
        """Number of positions S = K N N; position (k, row, column) has index (k N + row) N + column."""
        return self.epitomes * self.size**2

    @property
    def variance(self) -> Tensor:
        """Variances, (K, B, N, N)."""
        return self.log_variance.exp() + self.floor

    def forward(self, patches: Tensor) -> Tensor:
        """Return log p(x, s) of patches, (n, B, w, w), shape (n, S).

        Differentiable in patches and parameters. Computed in the parameters' own precision, even under autocast:
        exponents are differences of large numbers.

        Raises
        ------
        InputError
            If patches have another shape.
        """
        return self.evaluate(patches, *self.unfold())

    def unfold(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of :meth:`evaluate`: components (2 B w w, S), constants (S,) and centre (B,)."""
        with _plain(self.mean.device.type):
            # sum (x - mu)^2 / var is expanded for the product; with centred data its terms stay small, whereas
            # an offset common to data and means would lose digits. The result does not depend on it.
            centre = self.mean.detach().mean(dim=(0, 2, 3))
            precision = 1 / self.variance
            mean = self.mean - centre[:, None, None]
            weighted = mean * precision
            pieces = torch.cat([weighted, -0.5 * precision], dim=1)
            components = F.unfold(self._wrap(pieces), self.patch)  # (K, 2 B w w, N N)
            constant = -0.5 * (mean * weighted - precision.log() + math.log(2 * math.pi)).sum(dim=1, keepdim=True)
            constants = F.avg_pool2d(self._wrap(constant), self.patch, stride=1) * self.patch**2
            log_prior = torch.log_softmax(self.log_prior.flatten(), dim=0)
            return components.transpose(0, 1).flatten(1), constants.flatten() + log_prior, centre

    def evaluate(self, patches: Tensor, components: Tensor, constants: Tensor, centre: Tensor) -> Tensor:
        """Compute the log-likelihood of patches at every position, from the result of :meth:`unfold`.

        Parameters
        ----------
        patches
            (n, B, w, w), B bands and w pixels a side.
        components, constants, centre
            From :meth:`unfold`, which is called once for many calls.

        Returns
        -------
        Tensor
            log p(x, s), shape (n, S), S positions of the epitome.

        Raises
        ------
        InputError
            If the patches have a different number of bands or size than the epitome.
        """
        if patches.shape[1:] != (self.bands, self.patch, self.patch):
            msg = (
                f"patches of shape {tuple(patches.shape[1:])} do not fit an epitome of {self.bands} bands and "
                f"{self.patch} px patches; give (n, {self.bands}, {self.patch}, {self.patch})"
            )
            raise InputError(msg)
        with _plain(patches.device.type):
            x = (patches.to(centre.dtype) - centre[:, None, None]).flatten(1)
            return torch.addmm(constants, torch.cat([x, x.square()], dim=1), components)

    def _wrap(self, values: Tensor) -> Tensor:
        """Return values, (K, C, N, N), with the first rows and columns repeated at the end."""
        return F.pad(values, (0, self.patch - 1, 0, self.patch - 1), mode="circular") if self.patch > 1 else values

    # -- location promotion ----------------------------------------------------------------------

    @torch.no_grad()
    def mark(self, chosen: Tensor, window: int, share: float) -> None:
        """Count the use of positions and their neighbours; reset all counts once nearly all have been used.

        Parameters
        ----------
        chosen
            Indices of positions, (n,).
        window
            Side of the square of positions, around each, that are counted with it; odd.
        share
            The counts are reset when at least this share of the positions has one.
        """
        hits = torch.bincount(chosen, minlength=self.positions).view_as(self.visits)
        self.visits += hits
        spread = hits.to(self.used.dtype)[:, None]
        if window > 1:
            radius = window // 2
            spread = F.pad(spread, (radius, radius, radius, radius), mode="circular")
            spread = F.avg_pool2d(spread, window, stride=1) * window**2
        self.used += spread[:, 0].round()
        if (self.used > 0).float().mean() >= share:
            self.used.zero_()
            self.resets += 1


def build_epitome(
    bands: int,
    *,
    seed: int,
    size: int = SIZE,
    patch: int = PATCH,
    epitomes: int = 1,
    variance: float = 1.0,
    variance_floor: float = VARIANCE_FLOOR,
) -> Epitome:
    """Build an epitome with random means from a seed, without changing the global random state.

    Parameters
    ----------
    bands
        Bands of the images.
    seed
        Seed of the random means.
    size
        Side of an epitome, pixels.
    patch
        Side of the patches that it models, pixels.
    epitomes
        Number of epitomes.
    variance
        Initial variance; bands are standardised, so 1 is that of the whole image.
    variance_floor
        Lower bound of the variance.

    Returns
    -------
    Epitome
        An untrained epitome on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Epitome(
            bands, size=size, patch=patch, epitomes=epitomes, variance=variance, variance_floor=variance_floor
        )


class EpitomeClassifier(PixelNetwork):
    """An epitome with a distribution over classes at every pixel of its torus: a network for windowed prediction.

    q(l | pixel) = sum_s p(s | patch around the pixel) p(l | centre of s), smoothed as
    :class:`landprior.implicit.networks.SmoothedNetwork` does. Beyond the window's edge the patch is 0, as for a
    convolution.

    Parameters
    ----------
    epitome
        A trained epitome.
    classes
        Number of classes C.
    smoothing
        Constant added to every class probability before normalising.

    Attributes
    ----------
    labels
        Buffer, (C, K, N, N): p(l | pixel of the torus), sum 1 over the classes; uniform until :meth:`embed`.
    halo
        Pixels around a pixel that its output depends on.
    """

    labels: Tensor

    def __init__(self, epitome: Epitome, classes: int, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.epitome = epitome
        self.classes, self.smoothing, self.halo = classes, smoothing, epitome.patch // 2
        shape = (classes, epitome.epitomes, epitome.size, epitome.size)
        self.register_buffer("labels", torch.full(shape, 1 / classes))

    def embed(self, labels: Tensor) -> None:
        """Set p(l | pixel of the torus), from shape (S, C).

        Raises
        ------
        InputError
            If the shape is different.
        """
        if labels.shape != (self.epitome.positions, self.classes):
            msg = (
                f"label probabilities of shape {tuple(labels.shape)} do not fit an epitome of {self.epitome.positions} "
                f"positions and {self.classes} classes"
            )
            raise InputError(msg)
        with torch.no_grad():
            self.labels.copy_(labels.T.reshape(self.labels.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return log q, (n, C, H, W), of images, (n, B, H, W); a few rows at a time, so that memory stays bounded."""
        epitome = self.epitome
        known = epitome.unfold()
        # the window at s has its centre at s + halo
        centred = self.labels.roll((-self.halo, -self.halo), dims=(2, 3)).flatten(1).T.to(known[0].dtype)  # (S, C)
        pixels = max(1, CHUNK_VALUES // epitome.positions)
        height, width = x.shape[-2:]
        padded = F.pad(x, (self.halo,) * 4)
        rows = max(1, CHUNK_VALUES // 4 // (width * epitome.bands * epitome.patch**2))
        found = []
        for image in padded:
            parts = []
            for top in range(0, height, rows):
                strip = image[None, :, top : top + min(rows, height - top) + 2 * self.halo]
                patches = F.unfold(strip, epitome.patch)[0].T
                for chunk in torch.split(patches, pixels):
                    cut = chunk.reshape(-1, epitome.bands, epitome.patch, epitome.patch)
                    parts.append(self._classify(epitome.evaluate(cut, *known), centred))
            found.append(torch.cat(parts).T.reshape(self.classes, height, width))
        return torch.stack(found)

    def _classify(self, joint: Tensor, labels: Tensor) -> Tensor:
        """Return log q, (n, C), from log p(x, s), (n, S), and p(l | s), (S, C)."""
        with _plain(joint.device.type):
            q = torch.softmax(joint, dim=1) @ labels
            q = q / q.sum(dim=1, keepdim=True)
            tiny = torch.finfo(q.dtype).tiny
            return torch.log(((q + self.smoothing) / (1 + self.classes * self.smoothing)).clamp_min(tiny))


def build_epitome_classifier(
    bands: int,
    classes: int,
    *,
    size: int = SIZE,
    patch: int = PATCH,
    epitomes: int = 1,
    smoothing: float = 0.0,
) -> EpitomeClassifier:
    """Build an epitome with a label embedding, to be filled with weights or by training.

    Parameters
    ----------
    bands, classes
        Channels in and out.
    size, patch, epitomes, smoothing
        See :class:`Epitome` and :class:`EpitomeClassifier`.

    Returns
    -------
    EpitomeClassifier
        The classifier; its means and embedding are not set yet.
    """
    epitome = Epitome(bands, size=size, patch=patch, epitomes=epitomes)
    return EpitomeClassifier(epitome, classes, smoothing=smoothing)


@contextlib.contextmanager
def _plain(device: str) -> Iterator[None]:
    """Compute in the tensors' own precision: neither autocast nor, on CUDA, TF32, which keeps only three digits."""
    before = torch.get_float32_matmul_precision()
    if device == "cuda" and before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if device == "cuda" and before != "highest":
            torch.set_float32_matmul_precision(before)
