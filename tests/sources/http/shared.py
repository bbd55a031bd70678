"""Helpers for the tests of the network: a retry policy, a source, servers with given responses."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager

import numpy as np
import rasterio
from affine import Affine

from landprior.sources.http.client import RetryPolicy
from landprior.sources.http.origins import Origin
from landprior.sources.http.ranges import open_remote

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=5.0, connect_timeout=2.0, read_timeout=1.0, grace=0.3)

SOURCE = Origin(name="The source", folder="source", remedy="give a file of your own")

DATA = np.random.default_rng(5).bytes(600_000)


def write_noise(path, *, seed, size=1024, **options):
    values = np.random.default_rng(seed).integers(0, 255, (4, size, size), dtype=np.uint8)
    profile = {"width": size, "height": size, "count": 4, "dtype": "uint8", "crs": "EPSG:26917", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "transform": Affine(1, 0, 6e5, 0, -1, 4e6)}
    with rasterio.open(path, "w", driver="GTiff", **(profile | options)) as out:
        out.write(values)


def ranges(server):
    """Return the requested ranges: (first, last) of each request, with last None if open, and None for a whole file."""
    found = (re.fullmatch(r"bytes=(\d+)-(\d*)", r.headers.get("Range", "")) for r in server.requests)
    return [None if f is None else (int(f[1]), int(f[2]) if f[2] else None) for f in found]


@contextmanager
def speaking(answer=b"", *, times=1):
    """Give the address of a server that sends exactly these bytes, or nothing, and then waits for the client."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            for _ in range(times):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if answer:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def files_of(folder):
    """Return the files in a folder, without locks."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)


def failing(*failures):
    """Return an action that raises the given errors one by one, and then returns 7."""
    left = list(failures)

    def action():
        if left:
            raise left.pop(0)
        return 7

    return action


def read_all(network, remote):
    with open_remote(network, remote, SOURCE) as src:
        return src.read()


def served(content, validators, *, if_range=True):
    """Return a route that serves a file with ranges and these validators, optionally without support for If-Range."""

    def route(request):
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        known = request.headers.get("If-Range")
        if found is None or (if_range and known is not None and known not in validators.values()):
            return 200, dict(validators), content
        start, stop = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return 416, validators | {"Content-Range": f"bytes */{len(content)}"}, b""
        return 206, validators | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    return route


DATED = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
