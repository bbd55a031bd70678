"""Sessions that run the checks, each in its own environment: ``pip install nox uv``, then ``nox -s lint``."""

from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests-3.11"]

VERSIONS = ["3.11", "3.12", "3.13"]


@nox.session(python=VERSIONS[0])
def lint(session: nox.Session) -> None:
    """Check style, types, spelling and docstrings, as continuous integration checks them."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("codespell")
    # the docstring of a command is its help text
    modules = [str(path) for path in sorted(Path("landprior").rglob("*.py")) if "cli" not in path.parts]
    session.run("numpydoc", "lint", *modules)


@nox.session(python=VERSIONS)
def tests(session: nox.Session) -> None:
    """Run the fast tests; arguments after ``--`` go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python=VERSIONS[0])
def coverage(session: nox.Session) -> None:
    """Run all fast tests, and print the lines that no test reaches."""
    session.install("-e", ".[test-all]")
    session.run("pytest", "--cov", "--cov-report=term-missing:skip-covered", *session.posargs)


@nox.session(python=VERSIONS[0])
def minimum(session: nox.Session) -> None:
    """Run the fast tests with the lowest version of each dependency that pyproject.toml allows."""
    pins = Path(session.create_tmp()) / "lowest.txt"
    session.install("uv")
    session.run(
        "uv", "pip", "compile", "--quiet", "--resolution=lowest-direct", f"--python-version={VERSIONS[0]}",
        "--extra=test", f"--output-file={pins}", "pyproject.toml", silent=True,
    )  # fmt: skip
    session.run("uv", "pip", "install", "--requirement", str(pins))
    session.install("--no-deps", "-e", ".")
    # old releases use features that the newer ones beside them have deprecated
    silenced = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
    session.run("pytest", *silenced, *session.posargs)


@nox.session(python=VERSIONS[0])
def docs(session: nox.Session) -> None:
    """Build the site in ``site/``; warnings count as errors."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")
