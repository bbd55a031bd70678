"""Finds the commands in a page's code blocks, as they would be typed."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block on a page."""

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as typed, without its comment."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self):
        return shlex.join(self.words)


def find_blocks(page, *languages):
    """Return the code blocks in some languages (in all, if none is given)."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"])
        for found in FENCE.finditer(text)
        if not languages or found["language"] in languages
    ]


def find_commands(page):
    """Return all commands on a page in order; those joined by && separately."""
    commands = []
    for block in find_blocks(page, "sh", "bash", "console"):
        text = block.text.replace("\\\n", " " * 2)
        for number, line in enumerate(text.splitlines()):
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                commands.append(Command(page, block.line + 1 + number, tuple(words[:end])))
                words = words[end + 1 :]
    return commands
