# noqa: INP001 - an extension of griffe, no module of a package
"""Docstrings for the site: roles such as :func:`landprior.train` become links, blocks after two colons become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of a docstring when griffe has read it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - griffe's signature
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(link, obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def link(role: re.Match[str]) -> str:
    """Return a link to what a role names, or only its name where the site does not have it."""
    shown = role[2].rpartition(".")[2] if role[1] else role[2]
    return f'<autoref identifier="{role[2]}" optional><code>{shown}</code></autoref>'
