"""The rules of docs/architecture.md: the direction of imports, no cycles, torch only where needed, short modules."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "landprior").rglob("*.py"))
}

BASE = {"errors", "addresses", "environment", "inputs", "progress", "resources", "run", "strict_yaml"}
ARROWS = {
    **dict.fromkeys(BASE, BASE),
    "implicit": {"errors", "progress"},
    "raster": BASE,
    "records": BASE | {"raster"},
    "sources": BASE | {"raster", "records"},
    "landcover": BASE | {"implicit", "raster", "records", "sources"},
    "superres": BASE | {"implicit", "raster", "records", "sources", "landcover"},
    "domains": BASE | {"implicit", "raster", "records", "sources", "landcover"},
    "batch": BASE | {"raster", "records", "sources", "landcover"},
}
"""The packages that each package may import; the command line (and ``__main__``) may import all."""

SUBPACKAGES = {
    "training": set(),
    "prior": {"training"},
    "mapping": {"training"},
    "assessment": {"training", "mapping"},
    "vectors": {"training", "mapping", "assessment"},
    "adaptation": {"training", "prior", "mapping"},
    "workspace": {"training", "prior", "mapping", "adaptation", "assessment"},
    "experiments": {"training", "prior", "mapping", "adaptation", "assessment", "workspace"},
    "synthetic": {"training", "prior", "mapping", "adaptation", "assessment", "workspace"},
}
"""The packages of landcover that each of them may import."""

MOST_LINES = 450
REASON = "# Over 450 lines: "


@cache
def imports_in(name: str) -> tuple[tuple[str, int, bool, bool], ...]:
    """Return the modules that a module imports, with line, whether in a function, and whether only for types."""
    found = []

    def visit(node: ast.AST, *, lazy: bool, typing: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, lazy, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.module, f"{name}:{child.lineno}: imports are absolute"
                full = [f"{child.module}.{alias.name}" for alias in child.names]
                found.extend((one if one in MODULES else child.module, child.lineno, lazy, typing) for one in full)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for one in child.body:
                    visit(ast.Module([one], []), lazy=inside, typing=True)
                for one in child.orelse:
                    visit(ast.Module([one], []), lazy=inside, typing=typing)
            else:
                visit(child, lazy=inside, typing=typing)

    visit(ast.parse(MODULES[name].read_text(encoding="utf-8")), lazy=False, typing=False)
    return tuple(found)


def imports_of(name: str, *, lazy: bool) -> list[tuple[str, int]]:
    """Return the modules that a module imports, with lines: at its top, or (lazy) inside functions."""
    return [(other, line) for other, line, inside, _ in imports_in(name) if inside == lazy]


def runtime_imports(name: str) -> set[str]:
    """Return what importing a module imports, including its packages, but not imports for type checkers."""
    own = {other for other, _, lazy, typing in imports_in(name) if not (lazy or typing)}
    parts = name.split(".")
    return own | {".".join(parts[:end]) for end in range(1, len(parts))}


@cache
def all_imports(name: str) -> frozenset[str]:
    """Return everything that importing a module of landprior imports, with other libraries by name."""
    seen, todo = set(), [name]
    while todo:
        one = todo.pop()
        for other in runtime_imports(one):
            if other not in seen:
                seen.add(other)
                if other in MODULES:
                    todo.append(other)
    return frozenset(seen)


@cache
def needs_torch(name: str) -> bool:
    return any(other.split(".")[0] in ("torch", "lightning", "torchgeo") for other in all_imports(name))


def package_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_packages_import_one_way(package):
    for name in MODULES:
        if package_of(name) != package:
            continue
        for other, line in (*imports_of(name, lazy=False), *imports_of(name, lazy=True)):
            if other.startswith("landprior.") and package_of(other) != package:
                assert package_of(other) in ARROWS[package], f"{name}:{line} imports {other}"


@pytest.mark.parametrize("package", sorted(SUBPACKAGES))
def test_packages_of_landcover_import_one_way(package):
    for name in MODULES:
        if not name.startswith(f"landprior.landcover.{package}."):
            continue
        for other, line in (*imports_of(name, lazy=False), *imports_of(name, lazy=True)):
            if other.startswith("landprior.landcover.") and other.split(".")[2] != package:
                assert other.split(".")[2] in SUBPACKAGES[package], f"{name}:{line} imports {other}"


def test_every_module_is_in_a_package_with_rules():
    known = {*ARROWS, "cli", "__main__", ""}
    assert {package_of(name) for name in MODULES} <= known
    packages = {name.split(".")[2] for name in MODULES if name.startswith("landprior.landcover.")}
    assert packages == set(SUBPACKAGES)


def test_no_module_imports_itself_indirectly():
    """Imports in functions and for type checkers count too, but not the lazy imports of the package itself."""
    graph = {
        name: {other for lazy in (False, True) for other, _ in imports_of(name, lazy=lazy) if other in MODULES}
        for name in MODULES
        if name != "landprior"
    }
    while True:
        leaves = {name for name, others in graph.items() if not others & graph.keys() - {name}}
        if not leaves:
            break
        graph = {name: others for name, others in graph.items() if name not in leaves}
    circles = {name: sorted(others & graph.keys()) for name, others in graph.items()}
    assert not circles


@pytest.mark.parametrize("package", ["raster", "sources"])
def test_rasters_and_sources_need_no_torch(package):
    assert not [name for name in MODULES if package_of(name) == package and needs_torch(name)]


def test_importing_a_command_does_not_import_torch():
    assert not [name for name in MODULES if package_of(name) == "cli" and needs_torch(name)]


def test_imports_inside_functions_avoid_torch():
    """Modules of landprior are imported in functions only to keep torch out of the command line."""
    needless = [
        f"{name}:{line} imports {other}"
        for name in MODULES
        if package_of(name) not in ("cli", "__main__", "")
        for other, line in imports_of(name, lazy=True)
        if other in MODULES and (needs_torch(name) or not needs_torch(other))
    ]
    assert not needless


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_are_short_or_explain_why_not(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES or REASON in text
