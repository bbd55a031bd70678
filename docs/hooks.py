# noqa: INP001 - a hook of mkdocs, no module of a package
"""Pages that mkdocs makes from the code: one per command, from click, and one per package, from the docstrings."""

from __future__ import annotations

import ast
import html
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

COMMANDS, API = "reference/commands/", "reference/api/"
REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "landprior"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, where it names their folder."""
    below = {folder: [page for page in make_pages() if page.startswith(folder)] for folder in (COMMANDS, API)}
    config.nav = _expand(config.nav, below)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that are written by hand."""
    from mkdocs.structure.files import File

    for page, text in make_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def _expand(entry: Any, below: dict[str, list[str]]) -> Any:  # noqa: ANN401 - the nav of mkdocs, as YAML has it
    if isinstance(entry, list):
        return [_expand(one, below) for one in entry]
    if isinstance(entry, dict):
        return {title: _expand(one, below) for title, one in entry.items()}
    return below.get(entry, entry)


def make_pages() -> dict[str, str]:
    """Return the generated pages: path below docs/ -> Markdown."""
    return command_pages() | api_pages() | {"modules.md": list_modules()}


# -- commands -------------------------------------------------------------------------------------


def command_pages() -> dict[str, str]:
    """Return a page for each command, and one that lists them."""
    from landprior.cli import SECTIONS, main

    top = click.Context(main, info_name="landprior")
    commands = {name: main.get_command(top, name) for name in main.list_commands(top)}
    lines = [
        "# Commands",
        "",
        *_describe(main),
        "",
        *_options(main, top),
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"## {title}", "", "| command | what it does |", "| --- | --- |"]
        lines += [f"| [`{name}`]({name}.md) | {_first_line(commands[name])} |" for name in names]
    pages = {f"{COMMANDS}index.md": "\n".join(lines) + "\n"}
    for name, command in commands.items():
        pages[f"{COMMANDS}{name}.md"] = "\n".join([f"# landprior {name}", "", *_command(command, name, top)]) + "\n"
    return pages


def _command(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    lines = [*_describe(command), "", "```", f"{context.command_path} {_usage(command, context)}", "```", ""]
    lines += _options(command, context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            part = command.get_command(context, below)
            if part is not None:
                lines += ["", f"## {context.command_path} {below}", "", *_command(part, below, context)]
    return lines


def _usage(command: click.Command, context: click.Context) -> str:
    return " ".join(command.collect_usage_pieces(context))


def _describe(command: click.Command) -> list[str]:
    r"""Return a command's help as Markdown; what stands after ``\b`` are examples."""
    lines = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            lines += ["```sh", paragraph.removeprefix("\b").strip("\n"), "```", ""]
        else:
            lines += [_escape(paragraph), ""]
    return lines[:-1]


def _options(command: click.Command, context: click.Context) -> list[str]:
    from landprior.cli.command import describe_options

    lines: list[str] = []
    for title, records in describe_options(command, context).items():
        rows = [(_cell(names), _escape(text).replace("|", "\\|")) for names, text in records]
        lines += ["", f"**{title}**", "", "| option | meaning |", "| --- | --- |"]
        lines += [f"| {names} | {text} |" for names, text in rows]
    return lines[1:]


def _cell(names: str) -> str:
    """Return names and values of an option as code; | would end the cell."""
    return f"<code>{html.escape(names).replace('|', '&#124;')}</code>"


def _escape(text: str) -> str:
    """Keep Markdown from taking <city>, * and _ for marks of its own."""
    return re.sub(r"([<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def _first_line(command: click.Command | None) -> str:
    return "" if command is None else _escape(command.get_short_help_str(limit=200)).replace("|", "\\|")


# -- modules --------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """Return a page for each package, with all its public modules, and one that lists them."""
    packages = {
        package: modules
        for package, modules in find_modules().items()
        if not package.startswith(("landprior.cli", "landprior.web"))
    }
    intro = "What `landprior` itself exports is kept stable; the modules below are documented, but may still change."
    lines = ["# API", "", intro, "", "::: landprior", "", "## Packages", ""]
    lines += [f"- [`{package}`]({package}.md)" for package in packages]
    pages = {f"{API}index.md": "\n".join(lines) + "\n"}
    for package, modules in packages.items():
        text = [f"# {package}", "", *(f"::: {package}.{module}\n" for module in modules)]
        pages[f"{API}{package}.md"] = "\n".join(text)
    return pages


def list_modules() -> str:
    """Return a page with a line for each module: the first of its docstring."""
    lines = [
        "# Modules",
        "",
        "Every module with the first line of its docstring. [Architecture](architecture.md) explains the packages.",
    ]
    for package, modules in find_modules().items():
        folder = REPOSITORY / package.replace(".", "/")
        lines += ["", f"## {package}", "", _tell(folder / "__init__.py"), "", "| module | what |", "| --- | --- |"]
        lines += [f"| `{module}` | {_tell(folder / f'{module}.py')} |" for module in modules]
    return "\n".join(lines) + "\n"


def find_modules() -> dict[str, list[str]]:
    """Return the modules of each package, by its dotted name."""
    packages: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        package = ".".join(path.relative_to(REPOSITORY).parts[:-1])
        if path.stem not in {"__init__", "__main__"}:
            packages.setdefault(package, []).append(path.stem)
    return packages


def _tell(path: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
