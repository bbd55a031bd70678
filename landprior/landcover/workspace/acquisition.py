"""Fetching a place: from a plan to tiles of a workspace with one file per layer, on one grid."""

from __future__ import annotations

import warnings
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from landprior.errors import (
    LandpriorError,
    OfflineError,
    SourceError,
    SourceWarning,
)
from landprior.landcover.workspace.tile_fetch import TileFetcher
from landprior.run import Run

if TYPE_CHECKING:
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.fetch_settings import FetchSettings
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.sources.http.client import Network


def fetch(
    plan: FetchPlan,
    workspace: Workspace,
    settings: FetchSettings,
    network: Network,
    *,
    collection: bool = True,
    run: Run = Run(),
) -> list[TileFolder]:
    """Fetch the layers of all tiles, except those that exist and are current.

    Parameters
    ----------
    plan
        From :func:`landprior.landcover.workspace.layout.plan_fetch`.
    workspace
        Gets a folder ``<area>/<tile>/`` per tile, with one file per layer and ``item.json``, and ``collection.json``.
    settings
        The settings used for the plan.
    network
        Retries, cache, offline.
    collection
        Write ``collection.json`` of the workspace at the end, which reads every tile's item.
    run
        See :class:`landprior.run.Run`; with ``overwrite`` everything is fetched again, replacing even files put
        there by hand.

    Returns
    -------
    list of TileFolder
        The complete tiles, in the plan's order.

    Raises
    ------
    SourceError
        If a tile is incomplete, raised after all others are done; gives the number, the names and the first cause.
    OfflineError
        In offline mode, with everything that is missing.
    RasterWriteError
        If the disk is full; raised immediately.
    """
    if collection and plan.doubles:
        warnings.warn(plan.explain_doubles(), SourceWarning, stacklevel=2)
    job = TileFetcher(plan=plan, settings=settings, network=network, run=run)
    failures: dict[str, list[LandpriorError]] = {}
    try:
        with ThreadPoolExecutor(max_workers=min(settings.jobs, len(plan.tiles))) as pool:
            futures = {pool.submit(job.fetch_tile, tile): tile for tile in plan.tiles}
            waiting = set(futures)
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        failures[futures[future].folder.name] = future.result()
            except BaseException:
                network.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        whole = [tile.folder for tile in plan.tiles if failures.get(tile.folder.name) == []]
        if whole and collection:
            workspace.write_collection()
    job.report_empty()
    failed = {name: errors for name, errors in failures.items() if errors}
    if failed:
        _raise_failures(failed, len(plan.tiles))
    return whole


def _raise_failures(failed: dict[str, list[LandpriorError]], total: int) -> None:
    errors = [error for several in failed.values() for error in several]
    if all(isinstance(error, OfflineError) for error in errors):
        texts = [f"{name}: {error}" for name, several in failed.items() for error in several]
        raise OfflineError("\n".join(dict.fromkeys(texts)))
    first = next(error for error in errors if not isinstance(error, OfflineError))
    if total == 1 or (len(failed) == total and len({str(error) for error in errors}) == 1):
        raise first
    msg = f"{len(failed)} of {total} tiles are incomplete ({', '.join(sorted(failed)[:5])}); the first cause: {first}"
    raise SourceError(msg)
