"""Streaming: deferred results, and errors in them."""

import threading
import time

import numpy as np
import pytest

from landprior.raster.windows import iter_blocks, stream


class Sink:
    def __init__(self, grid):
        self.values = np.zeros(grid.shape, dtype=np.uint8)

    def write(self, values, window):
        rows, columns = window.toslices()
        self.values[rows, columns] = values


@pytest.mark.parametrize("late", [False, True])
def test_deferred_results_are_computed_in_the_writing_thread(make_grid, late):
    grid = make_grid(70, 50)
    sink, threads = Sink(grid), set()

    def compute(block, number):
        def finish():
            threads.add(threading.current_thread().name)
            time.sleep(0.001)
            return np.full((block.core.height, block.core.width), number, dtype=np.uint8)

        return {"map": finish if late else finish()}

    numbers = {(b.core.row_off, b.core.col_off): n for n, b in enumerate(iter_blocks(grid, size=16))}
    stream(
        compute,
        read=lambda block: numbers[block.core.row_off, block.core.col_off],
        grid=grid,
        sinks={"map": sink},
        size=16,
    )
    for (row, column), number in numbers.items():
        assert (sink.values[row : row + 16, column : column + 16] == number).all()
    assert (threading.current_thread().name in threads) is not late


def test_an_error_in_a_deferred_result_is_raised(make_grid):
    def compute(*_):
        return {"map": lambda: 1 // 0}

    grid = make_grid(70, 50)
    with pytest.raises(ZeroDivisionError):
        stream(compute, read=lambda _: None, grid=grid, sinks={"map": Sink(grid)}, size=16)
