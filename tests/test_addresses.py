"""Removing secrets from addresses."""

from __future__ import annotations

import pytest

from landprior.addresses import redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a/b.tif?sv=1&sig=secret#part", "https://host/a/b.tif"),
        ("https://user:secret@host:8080/a", "https://host:8080/a"),
        ("http://[::1]:80/a?secret", "http://[::1]:80/a"),
        ("http://host:port/a?secret", "http://host:port/a"),
        ("http://[secret/a", "an invalid URL"),
        ("user:secret@host/a?secret", "host/a"),
        ("folder/nlcd.tif", "folder/nlcd.tif"),
        ("", ""),
    ],
)
def test_redact(url, shown):
    assert redact(url) == shown
