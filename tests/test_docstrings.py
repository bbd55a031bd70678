"""Docstrings: which functions document parameters, results and errors (`numpydoc lint` compares the names)."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest

import landprior
from landprior import errors

PACKAGE = Path(landprior.__file__).parent
COMMANDS = PACKAGE / "cli"
"""The docstring of a command is its help text, and its options are documented in place."""

MANY = 3
"""With this many parameters, a one-line docstring is not enough."""


@dataclass(frozen=True)
class Function:
    """A public function or method: its place, its parameters and its docstring."""

    where: str
    node: ast.FunctionDef
    method: bool

    @property
    def parameters(self):
        arguments = self.node.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names = names[1:] if self.method and names[:1] in (["self"], ["cls"]) else names
        return names + [one.arg for one in (arguments.vararg, arguments.kwarg) if one is not None]

    def has(self, *sections):
        text = ast.get_docstring(self.node) or ""
        return any(f"\n{section}\n{'-' * len(section)}\n" in f"\n{text}\n" for section in sections)

    @property
    def decorators(self):
        return {ast.unparse(one).partition("(")[0] for one in self.node.decorator_list}

    @property
    def returns(self):
        found = "None" if self.node.returns is None else ast.unparse(self.node.returns)
        return found not in ("None", "NoReturn") and "property" not in self.decorators


def functions(path):
    def visit(node, names):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from visit(child, [*names, child.name])
            elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                where = f"{path.relative_to(PACKAGE.parent)}:{'.'.join([*names, child.name])}"
                yield Function(where, child, method=bool(names))

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), [])


FUNCTIONS = [
    function
    for path in sorted(PACKAGE.rglob("*.py"))
    if COMMANDS not in path.parents
    for function in functions(path)
    if not {"overload", "override"} & function.decorators
]


def test_many_parameters_are_documented():
    assert [f.where for f in FUNCTIONS if len(f.parameters) >= MANY and not f.has("Parameters")] == []


def test_return_values_are_documented_with_the_parameters():
    with_parameters = [f for f in FUNCTIONS if f.has("Parameters") and f.returns]
    assert len(with_parameters) > 300
    assert [f.where for f in with_parameters if not f.has("Returns", "Yields")] == []


def raised_by(function):
    """Return landprior's errors that a function raises itself, not in nested functions."""

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                name = ast.unparse(child.exc.func)
                if isinstance(getattr(errors, name, None), type):
                    yield getattr(errors, name)
            yield from visit(child)

    return set(visit(function.node))


def test_errors_of_landprior_are_documented_where_they_are_raised():
    """By their own name or that of a base class."""
    missing = []
    for function in FUNCTIONS:
        text = (ast.get_docstring(function.node) or "").partition("\nRaises\n")[2]
        for error in raised_by(function):
            names = [one.__name__ for one in error.__mro__ if issubclass(one, errors.LandpriorError)]
            if not any(name in text for name in names):
                missing.append(f"{function.where} raises {error.__name__}")
    assert missing == []


@pytest.mark.parametrize("name", [name for name in landprior.__all__ if name.islower() and name != "losses"])
def test_public_functions_are_fully_documented(name):
    found = getattr(landprior, name)
    text = inspect.getdoc(found)
    for section in ("Parameters", "Returns", "Raises"):
        assert f"\n{section}\n{'-' * len(section)}\n" in text, section


def test_losses_are_fully_documented():
    for name, loss in landprior.losses.LOSSES.items():
        for section in ("Parameters", "Returns", "Raises"):
            assert f"\n{section}\n{'-' * len(section)}\n" in inspect.getdoc(loss), name
