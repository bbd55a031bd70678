"""Fixtures: real servers on loopback, a server that fails on demand, and the files of a synthetic place.

Servers use free ports, keep their files and logs in temporary folders, and stop with the fixture.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from landprior.sources.http.cache import Cache

from .faulty import FaultyServer
from .place import SceneFiles, write_scene_files
from .programs import FileServers, StacServers, WcsServers, find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from .faulty import Answer, Received


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A separate, empty cache."""
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="session", autouse=True)
def _no_proxy() -> Iterator[None]:
    """Reach loopback directly, even if the environment sets a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session")
def file_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServers]:
    """``file_server(folder)`` serves it with nginx and returns the URL; ``.requests(url)``, ``.stop(url)``."""
    find_program("nginx")
    servers = FileServers(tmp_path_factory)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def wcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WcsServers]:
    """``wcs_server(raster, coverage=name)`` serves it with MapServer and returns the URL; ``.requests``, ``.stop``."""
    for name in ("nginx", "spawn-fcgi", "mapserv"):
        find_program(name)
    servers = WcsServers(tmp_path_factory)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def stac_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacServers]:
    """``stac_server(items)`` serves them with rustac and returns the root URL; ``.stop(url)``."""
    find_program("rustac")
    servers = StacServers(tmp_path_factory)
    yield servers
    servers.close()


@pytest.fixture
def faulty_server() -> Iterator[Callable[..., FaultyServer]]:
    """``faulty_server(folder=None, routes=None)`` returns a running :class:`FaultyServer`."""
    with ExitStack() as stack:

        def serve(
            folder: Path | None = None, *, routes: Mapping[str, Callable[[Received], Answer]] | None = None
        ) -> FaultyServer:
            return stack.enter_context(FaultyServer(folder, routes))

        yield serve


@pytest.fixture(scope="session")
def scene_files(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    """Return the files of the demo's scene; do not change them, because all tests share them."""
    return write_scene_files(tmp_path_factory.mktemp("scene"))
