"""Files around the package: versions that must agree, and the names in files for contributors."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from xdist.plugin import pytest_cmdline_main

import landprior

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def names(requirements):
    """Return the packages of requirements, with the project's own extras replaced by their packages."""
    for requirement in requirements:
        own = re.fullmatch(r"landprior\[(.*)\]", requirement)
        if own:
            for extra in own[1].split(","):
                yield from names(EXTRAS[extra])
        else:
            yield re.split(r"[\[<>=]", requirement)[0]


def test_hooks_have_the_versions_of_the_linters():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = {package for hook in hooks for package in hook.get("additional_dependencies", [])}
    assert pinned == {package for package in EXTRAS["lint"] if "==" in package and not package.startswith("mypy")}


def test_the_citation_has_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == landprior.__version__
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == [
        "Rolf", "Malkin", "Graikos", "Jojic", "Robinson", "Jojic",
    ]  # fmt: skip


def test_every_package_has_a_line_on_the_dependencies_page():
    text = (REPOSITORY / "docs" / "dependencies.md").read_text()
    packages = {*names(PROJECT["project"]["dependencies"]), *names(EXTRAS["test-all"]), *names(EXTRAS["lint"])}
    assert {package for package in packages if not re.search(rf"\b{re.escape(package)}\b", text)} == set()


def test_optional_packages_of_tests_are_in_test_all_and_not_in_test():
    needed = set()
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.needs":
                needed |= {ast.literal_eval(argument) for argument in call.args}
    assert needed <= set(names(EXTRAS["test-all"]))
    assert needed & {*names(EXTRAS["test"]), *names(PROJECT["project"]["dependencies"])} == set()


def test_a_test_without_its_package_is_skipped_with_the_install_command(pytester):
    pytester.makeconftest((REPOSITORY / "tests" / "conftest.py").read_text())
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nmarkers = ['needs: x']\n")
    pytester.makepyfile("""
        import pytest

        @pytest.mark.needs("pytest", "no-such-package")
        def test_one():
            assert False

        @pytest.mark.needs("pytest")
        def test_two():
            pass
    """)
    done = pytester.runpytest("-ra")
    done.assert_outcomes(passed=1, skipped=1)
    done.stdout.fnmatch_lines(["*no-such-package is not installed; pip install -e '.[[]test-all]'"])


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        ("", 2),
        ("tests", 2),
        ("tests/raster tests/cli", 2),
        ("tests/raster/test_grid.py", 0),
        ("tests tests/raster/test_grid.py", 0),
        ("tests/raster/test_grid.py::test_one", 0),
        ("-k grid", 0),
        ("-s", 0),
        ("--collect-only", 0),
        ("--pdb", 0),
        ("-m slow", 0),
        ("-n 3", 3),
        ("-n 0", 0),
    ],
)
def test_whole_folders_run_on_every_core_and_chosen_tests_in_one_process(pytester, monkeypatch, arguments, processes):
    """Ask a plain pytest with the project's options and conftest how many processes it would start."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set by the code under test
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 64 << 30}))
    monkeypatch.chdir(REPOSITORY)
    config = pytester.parseconfigure(*arguments.split())
    pytest_cmdline_main(config)
    assert config.option.numprocesses == processes
    assert config.option.dist == ("loadfile" if processes else "no")


def test_the_workflow_runs_existing_sessions():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    sessions = {
        node.name
        for node in ast.parse((REPOSITORY / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    chosen = workflow["jobs"]["fast"]["strategy"]["matrix"]["session"]
    assert {name.partition("-")[0] for name in chosen} <= sessions
