"""``landprior --help`` against ``python -c "import click"``, in one run: ``python -m benchmarks.startup``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import click

COMMANDS = {
    "import click": [sys.executable, "-c", "import click"],
    "landprior --help": [sys.executable, "-m", "landprior", "--help"],
}


@click.command()
@click.option("--repeats", default=15, show_default=True, help="Timed runs of each.")
@click.option("--most", default=2.0, show_default=True, help="Exit with 1 above this ratio.")
def main(repeats: int, most: float) -> None:
    """Time whole processes alternately; print medians and their ratio."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(repeats + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first fills the caches
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(some) for name, some in times.items()}
    ratio = medians["landprior --help"] / medians["import click"]
    for name, seconds in medians.items():
        print(f"{name:<17} {1000 * seconds:6.0f} ms")
    print(f"ratio {ratio:.2f} (at most {most:.2f}), medians of {repeats}")
    sys.exit(0 if ratio <= most else 1)


if __name__ == "__main__":
    main()
