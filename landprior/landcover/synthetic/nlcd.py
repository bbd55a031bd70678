"""NLCD of a synthetic scene: 30 m cells coded by NLCD's own rules, rotated against the image as Albers is to UTM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

WATER, IMPERVIOUS, BARREN, TREES, GRASS = 10, 20, 30, 40, 70
"""Codes of the truth: the enviroatlas-5 scheme."""


def derive_nlcd(truth: NDArray[np.uint8], use: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Return codes of 30 m cells by NLCD's rules on impervious and canopy shares, generalised and with errors.

    Parameters
    ----------
    truth
        enviroatlas-5 codes at 1 m, shape (N, N).
    use
        NLCD code of the land use where nothing is built, shape (N, N).
    rng
        Source of the cells' rotation and errors.

    Returns
    -------
    ndarray
        NLCD codes on the grid of the truth, uint8, shape (N, N).
    """
    n = len(truth)
    angle = np.radians(rng.uniform(4, 9))
    rows, columns = np.mgrid[:n, :n]
    across = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(0, 30)
    down = rows * np.cos(angle) - columns * np.sin(angle) + n + rng.uniform(0, 30)
    i, j = (down // 30).astype(int), (across // 30).astype(int)
    shape = (int(i.max()) + 1, int(j.max()) + 1)
    cell = i * shape[1] + j
    pixels = np.bincount(cell.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    def share(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        sums = np.bincount(cell[mask], minlength=pixels.size).reshape(shape)
        return sums / np.maximum(pixels, 1)

    uses = np.array([31, 41, 42, 52, 71, 81, 82, 90])
    main = uses[np.argmax([share(use == code) for code in uses], axis=0)]
    canopy, built, water = share(truth == TREES), share(truth == IMPERVIOUS), share(truth == WATER)
    woods = share(np.isin(use, [41, 42, 90]))
    codes = main.copy()
    forest = (canopy > 0.5) & (woods > 0.4)
    codes[forest & ~np.isin(main, [41, 42, 90])] = 43
    around = ndimage.uniform_filter(built, 3, mode="nearest")
    codes[(built >= 0.05) & (around >= 0.06) & (built < 0.2)] = 21
    for low, code in ((0.2, 22), (0.5, 23), (0.8, 24)):
        codes[built >= low] = code
    codes[water > 0.5] = 11
    codes = _generalise(codes)
    confusions = {81: 71, 71: 81, 82: 81, 41: 43, 42: 43, 43: 41, 21: 71, 22: 21, 23: 22, 90: 41, 52: 71}
    wrong = rng.random(shape) < 0.10
    for code, other in confusions.items():
        codes[wrong & (codes == code)] = other
    return np.asarray(codes[i, j], dtype=np.uint8)


def _generalise(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Replace isolated natural cells by the most frequent code around them (NLCD's minimum mapping unit)."""
    kinds = np.unique(codes)
    votes = np.stack([ndimage.uniform_filter((codes == k).astype(float), 3, mode="nearest") for k in kinds])
    own = np.take_along_axis(votes, np.searchsorted(kinds, codes)[None], 0)[0]
    natural = ~np.isin(codes, [11, 21, 22, 23, 24])
    lonely = natural & (own < 0.2)
    return np.where(lonely, kinds[votes.argmax(0)], codes)
