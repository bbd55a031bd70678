"""Labelling an epitome: from high-resolution labels, or from coarse codes by expectation-maximisation.

Equation numbers are those of "Mining self-similarity" (Malkin, Ortiz, Robinson, Jojic 2020). A patch adds its posterior
p(s|x) over positions to the label, or code, of each of its pixels, at that pixel's place on the torus [6, 11].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from landprior.errors import InputError, PriorError
from landprior.superres.epitome_training import cut_patches, find_corners

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.implicit.epitomes import Epitome

LEFT_OUT = 1e-6
"""Maximum mass of a patch's posterior that is dropped, so that each patch affects few positions."""

POSTERIOR_VALUES = 6_000_000
"""Maximum floats of posteriors in memory."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Result of :func:`resolve_labels`.

    Parameters
    ----------
    labels
        p(l|s), shape (S, C), float64, sum 1.
    objective
        Sum over s and c of n(s, c) log sum_l p(c|l) p(l|s), in nats, before the first iteration and after each one.
    """

    labels: NDArray[np.float64]
    objective: list[float]


def embed_classes(
    epitome: Epitome,
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: int,
    *,
    valid: Sequence[Tensor] | None = None,
    stride: int = 1,
) -> Tensor:
    """Return p(l|s) from high-resolution labels [6].

    Parameters
    ----------
    epitome
        A trained epitome, on the device of the images.
    images
        Standardised images, each (B, H, W).
    labels
        Class positions, each (H, W); negative where there are none.
    classes
        Number of classes C.
    valid
        Masks of valid pixels, each (H, W); by default everywhere. Patches over a gap are left out.
    stride
        Distance between patches, pixels, in both directions.

    Returns
    -------
    Tensor
        Shape (S, C), sum 1; positions without labels have the mean of all labels.

    Raises
    ------
    InputError
        If no patch has a label.
    """
    counts = embed_codes(epitome, images, labels, classes, valid=valid, stride=stride)
    total = counts.sum(dim=1, keepdim=True)
    mean = counts.sum(dim=0) / counts.sum()
    return torch.where(total > 0, counts / total.clamp_min(torch.finfo(counts.dtype).tiny), mean)


@torch.no_grad()
def embed_codes(
    epitome: Epitome,
    images: Sequence[Tensor],
    codes: Sequence[Tensor],
    count: int,
    *,
    valid: Sequence[Tensor] | None = None,
    stride: int = 1,
) -> Tensor:
    """Measure how much of each coarse code falls on each position, n(s, c) [11].

    The smallest entries of each posterior are dropped, at most :data:`LEFT_OUT` in total; the others keep their
    value.

    Parameters
    ----------
    epitome, images
        See :func:`embed_classes`.
    codes
        Codes of each image, (H, W): indices 0 to count - 1, negative where there are none.
    count
        Number of codes.
    valid, stride, spread
        See :func:`embed_classes`.

    Returns
    -------
    Tensor
        Shape (S, count), float64.

    Raises
    ------
    InputError
        If no patch has a code.
    """
    known = epitome.unfold()
    offsets = [(row, column) for row in range(epitome.patch) for column in range(epitome.patch)]
    counts = torch.zeros(epitome.positions, count, dtype=torch.float64, device=epitome.mean.device)
    touched = False
    for number, image in enumerate(images):
        here = torch.ones_like(image[0], dtype=torch.bool) if valid is None else valid[number]
        width = image.shape[-1]
        corners = find_corners(here, epitome.patch)
        rows, columns = corners // width, corners % width
        corners = corners[(rows % stride == 0) & (columns % stride == 0)]
        flat = codes[number].flatten()
        for some in torch.split(corners, max(1, POSTERIOR_VALUES // epitome.positions)):
            patches = cut_patches(image, some, epitome.patch)
            posterior = torch.softmax(epitome.evaluate(patches, *known), dim=1)
            # entries below this sum to less than the permitted loss
            patch, position = torch.nonzero(posterior > LEFT_OUT / epitome.positions, as_tuple=True)
            weight = posterior[patch, position].double()
            for row, column in offsets:
                code = flat[some + row * width + column][patch]
                at = _shift(position, row, column, epitome.size)
                good = code >= 0
                touched |= bool(good.any())
                counts.view(-1).scatter_add_(0, at[good] * count + code[good].long(), weight[good])
    if not touched:
        msg = "no patch of the images has a label or code, so the epitome cannot be labelled"
        raise InputError(msg)
    return counts


def _shift(position: Tensor, row: int, column: int, size: int) -> Tensor:
    """Return the index of the pixel (row, column) of the window at a position, on the torus."""
    plane, rest = position // size**2, position % size**2
    return (plane * size + (rest // size + row) % size) * size + (rest % size + column) % size


def invert_matrix(matrix: NDArray[np.floating], shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return p(c|l), shape (codes, C), from P(l|c) and the codes' shares by Bayes' rule; 0 for an impossible class.

    Raises
    ------
    PriorError
        If a row that occurs is not a distribution.
    """
    belief = np.asarray(matrix, dtype=np.float64)
    shares = np.asarray(shares, dtype=np.float64)
    wrong = (belief < 0).any(axis=1) | ~np.isclose(belief.sum(axis=1), 1, atol=1e-3)
    wrong &= shares > 0
    if wrong.any():
        msg = (
            f"row {int(np.flatnonzero(wrong)[0])} of the matrix P(class | code) does not sum to 1 or has a negative "
            "value; give a cooccurrence matrix that has all codes of the place"
        )
        raise PriorError(msg)
    joint = belief * shares[:, None]
    mass = joint.sum(axis=0)
    return np.asarray(np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0))


def resolve_labels(
    counts: NDArray[np.floating],
    matrix: NDArray[np.floating],
    *,
    shares: NDArray[np.floating] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-6,
    chunk: int = 65_536,
) -> Resolved:
    """Return the p(l|s) that best explains coarse codes, by expectation-maximisation [8, 9].

    q(l|c, s) is proportional to p(l|s) p(c|l), p(l|s) to sum_c n(s, c) q(l|c, s); it starts from the mean of the
    classes. Each position is fitted separately, so this converges to its optimum, where many positions have one class.
    The first iterations do most of the work and keep more of the prior; stopping early acts as a regularisation.

    Parameters
    ----------
    counts
        n(s, c), shape (S, codes), not negative.
    matrix
        P(l|c), shape (codes, C), rows sum to 1.
    shares
        Frequencies of the codes, (codes,), for Bayes' rule; by default those of ``counts``.
    iterations, tolerance
        Maximum number of iterations, and the change of probabilities below which it stops.
    chunk
        Positions computed at a time, which limits memory.

    Returns
    -------
    Resolved
        Probabilities; positions without counts have the mean of the others, weighted by their counts.

    Raises
    ------
    InputError
        If shapes do not match or all counts are 0.
    PriorError
        See :func:`invert_matrix`.
    """
    counts, matrix = np.asarray(counts), np.asarray(matrix)
    if counts.ndim != 2 or matrix.ndim != 2 or counts.shape[1] != matrix.shape[0]:
        msg = f"counts of shape {counts.shape} and a matrix of shape {matrix.shape} do not fit: (S, codes), (codes, C)"
        raise InputError(msg)
    seen = counts.sum(axis=0, dtype=np.float64)
    if not seen.sum() > 0:
        msg = "no position has a coarse code, so no label can be resolved"
        raise InputError(msg)
    shares = seen / seen.sum() if shares is None else np.asarray(shares, dtype=np.float64)
    likelihood = invert_matrix(matrix, shares)  # p(c|l)
    start = shares @ np.asarray(matrix, dtype=np.float64)
    labels = np.tile(start / start.sum(), (len(counts), 1))
    moving = np.ones(-(-len(counts) // chunk), dtype=bool)
    objective = [_objective(counts, labels, likelihood, chunk)]
    for _ in range(iterations):
        for number, (n, before) in enumerate(_chunks(counts, labels, chunk)):
            if moving[number]:
                after = _iterate(n, before, likelihood)
                moving[number] = bool(np.abs(after - before).max(initial=0) > tolerance)
                before[:] = after
        objective.append(_objective(counts, labels, likelihood, chunk))
        if not moving.any():
            break
    weight = counts.sum(axis=1, dtype=np.float64)
    labels[weight <= 0] = weight @ labels / weight.sum()
    return Resolved(labels=labels, objective=objective)


def _iterate(
    counts: NDArray[np.floating], labels: NDArray[np.float64], likelihood: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return p(l|s) after one iteration, leaving rows without counts unchanged."""
    mixture = labels @ likelihood.T  # sum_l p(c|l) p(l|s)
    ratio = np.divide(counts, mixture, out=np.zeros_like(mixture), where=mixture > 0)
    after = labels * (ratio @ likelihood)
    total = after.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, np.divide(after, total, out=np.zeros_like(after), where=total > 0), labels))


def _objective(
    counts: NDArray[np.floating], labels: NDArray[np.float64], likelihood: NDArray[np.float64], chunk: int
) -> float:
    total = 0.0
    for n, some in _chunks(counts, labels, chunk):
        mixture = some @ likelihood.T
        total += float((n * np.log(np.where(n > 0, mixture, 1).clip(np.finfo(np.float64).tiny))).sum())
    return total


def _chunks(
    counts: NDArray[np.floating], labels: NDArray[np.float64], chunk: int
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.float64]]]:
    for first in range(0, len(counts), chunk):
        yield counts[first : first + chunk], labels[first : first + chunk]
