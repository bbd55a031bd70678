"""Means over squares around pixels, of batches with gaps; the cost does not depend on the side."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_boxes(values: Tensor, side: int) -> Tensor:
    """Sum values over the box of ``side`` x ``side`` pixels around each pixel; what lies outside counts nothing.

    Parameters
    ----------
    values
        Shape (..., H, W), floats.
    side
        In pixels; an even box has one pixel more above and to the left than below and to the right.

    Returns
    -------
    Tensor
        Same shape. The cost does not depend on the side.
    """
    for axis in (-2, -1):
        size = values.shape[axis]
        start = torch.arange(size, device=values.device) - side // 2
        sums = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.cumsum(axis)], dim=axis)
        last = sums.index_select(axis, (start + side).clamp(0, size))
        values = last - sums.index_select(axis, start.clamp(0, size))
    return values


def mean_boxes(q: Tensor, mask: Tensor, side: int) -> Tensor:
    """Average what is not negative over boxes, by the count of pixels that have data.

    Parameters
    ----------
    q
        Shape (N, C, H, W).
    mask
        True where there is data, (N, H, W).
    side
        See :func:`sum_boxes`.

    Returns
    -------
    Tensor, shape (N, C, H, W)
        0 where a box has no data.
    """
    known = mask.unsqueeze(1).to(q.dtype)
    return (sum_boxes(q * known, side) / sum_boxes(known, side).clamp_min(0.5)).clamp_min(0)
