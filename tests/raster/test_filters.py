from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from landprior.errors import InputError
from landprior.raster.filters import axis_matrix, box_taps, filter_window, gaussian_taps


def test_gaussian_taps_match_torchvision():
    import torch
    from torchvision.transforms._functional_tensor import _get_gaussian_kernel1d

    expected = _get_gaussian_kernel1d(101, 31.0, torch.float64, torch.device("cpu")).numpy()
    np.testing.assert_allclose(gaussian_taps(31, 50), expected, atol=1e-12)


def test_box_taps_cover_a_width_with_fractional_edges():
    np.testing.assert_allclose(box_taps(9), np.full(9, 1 / 9))
    # 5 m in pixels of 2 m is 2.5 pixels: one whole pixel and three quarters of each neighbour
    np.testing.assert_allclose(box_taps(5, 2.0), [0.3, 0.4, 0.3])
    np.testing.assert_allclose(box_taps(0.5), [1.0])


@given(width=st.floats(0.1, 60), pixel=st.floats(0.25, 30))
def test_taps_sum_to_one_and_are_symmetric(width, pixel):
    for taps in (box_taps(width, pixel), gaussian_taps(width, 2 * width, pixel)):
        assert taps.size % 2 == 1
        assert taps.sum() == pytest.approx(1)
        np.testing.assert_allclose(taps, taps[::-1])
        assert (taps > -1e-12).all()


@given(
    size=st.integers(1, 60),
    radius=st.integers(0, 80),
    data=st.data(),
)
def test_any_window_of_a_filter_equals_the_whole(size, radius, data):
    taps = np.random.default_rng(radius).random(2 * radius + 1)
    signal = np.random.default_rng(size).random(size)
    padded = np.pad(signal, radius, mode="reflect") if size > 1 else np.full(size + 2 * radius, signal[0])
    expected = np.convolve(padded, taps[::-1], mode="valid")
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    source = (max(start - radius, 0), min(stop + radius, size))
    if radius >= size:  # the reflection reaches everywhere
        source = (0, size)
    matrix = axis_matrix(taps, size=size, out=(start, stop), source=source)
    np.testing.assert_allclose(matrix @ signal[slice(*source)], expected[start:stop], rtol=1e-4)


def test_a_filter_matches_scipy(rng):
    image = rng.random((40, 33)).astype(np.float32)
    taps = box_taps(9)
    rows = axis_matrix(taps, size=40, out=(0, 40), source=(0, 40))
    columns = axis_matrix(taps, size=33, out=(0, 33), source=(0, 33))
    expected = ndimage.uniform_filter(image, 9, mode="mirror")
    np.testing.assert_allclose(filter_window(image, rows, columns), expected, atol=1e-6)


def test_too_small_a_source_window_raises():
    with pytest.raises(ValueError, match="needs more than"):
        axis_matrix(box_taps(9), size=100, out=(50, 60), source=(50, 60))


def test_impossible_blurs_are_refused():
    with pytest.raises(InputError, match="sigma > 0"):
        gaussian_taps(0, 50)
