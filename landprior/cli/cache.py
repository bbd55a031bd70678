"""``landprior cache``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from landprior.cli import options as shared

_folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="LANDPRIOR_CACHE",
    show_envvar=True,
    help="Folder of the cache.  [default: the system's folder for caches]",
)


@click.group(name="cache")
def command() -> None:
    """Show or clear the cache of downloads.

    \b
    landprior cache info
    landprior cache clear --source osm --older-than 30

    All workspaces share one cache: parts of NAIP files, NLCD, OpenStreetMap and building footprints.
    Clearing it does not affect any workspace.
    """  # noqa: D301


@command.command()
@_folder_option
@shared.json_option
def info(*, folder: Path | None, as_json: bool) -> None:
    """Show where the cache is and how much space each source uses."""
    from landprior.sources.http.cache import Cache

    cache = Cache(folder)
    usage = cache.usage()
    if as_json:
        sources = {u.source: {"files": u.entries, "bytes": u.size} for u in usage}
        click.echo(json.dumps({"folder": str(cache.root), "sources": sources}, indent=2))
        return
    click.echo(str(cache.root))
    for u in usage:
        click.echo(f"{u.source:<12} {u.entries:>7} files {_megabytes(u.size):>12}")
    click.echo(f"{'all':<12} {sum(u.entries for u in usage):>7} files {_megabytes(sum(u.size for u in usage)):>12}")


@command.command()
@_folder_option
@click.option(
    "--source", "sources", multiple=True, help="Source to clear, as 'info' names it; may be repeated.  [default: all]"
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Minimum age in days of the files to clear.  [default: 0]",
)
def clear(*, folder: Path | None, sources: tuple[str, ...], older_than: float) -> None:
    """Delete cached files."""
    from landprior.sources.http.cache import Cache

    freed = Cache(folder).clear(sources, older_than_days=older_than)
    click.echo(f"{_megabytes(freed)} freed")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
