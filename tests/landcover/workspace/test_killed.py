"""After ``kill -9`` of ``landprior run`` at a random moment, the same call ends as if nothing had happened."""

import json
import os
import subprocess
import sys

import pytest

KILLS = 20

_DRIVER = """
import faulthandler, json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np, rasterio
from safetensors.numpy import load_file
import lightning.fabric, pystac, safetensors.torch, torch._dynamo
import landprior.landcover.workspace.pipeline, landprior.landcover.training.settings
import landprior.landcover.mapping.predict
from landprior.cli import main
from landprior.landcover.synthetic.demo import write_scene

os.environ["OMP_NUM_THREADS"] = "1"
import torch
torch.set_num_threads(1)
settings = landprior.landcover.training.settings
usual = settings.make_settings
settings.make_settings = lambda recipe, **changes: usual(recipe, **changes | {"steps": 24, "patch_size": 32})
base, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def run(data, *, event=None, seconds=None):
    # In a child, which is killed at the given event (of files in the workspace) or after so many seconds.
    report, sent = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def watch(name, arguments):
            nonlocal count
            if name in EVENTS and str(data) in str(arguments[0]):
                count += 1
                if count == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        faulthandler.dump_traceback_later(300, exit=True)
        code = 1
        try:
            line = ["-q", "run", "--data", str(data), "--city", "temperate", "--scheme", "enviroatlas-5"]
            main([*line, "--filters", "2", "--recipe", "best"], standalone_mode=False)
            code = 0
        finally:
            os.write(sent, str(count).encode())
            os._exit(code)
    os.close(sent)
    start = time.monotonic()
    while seconds is not None and time.monotonic() - start < seconds and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.001)
    if seconds is not None:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    try:
        status = os.waitpid(child, 0)[1]
    except ChildProcessError:
        status = 0
    text = os.read(report, 20).decode()
    os.close(report)
    return status, int(text or 0), time.monotonic() - start


def content(path):
    if path.suffix == ".tif":
        with rasterio.open(path) as src:
            return src.tags(ns="landprior"), src.read().tobytes()
    if path.suffix == ".safetensors":
        return {name: values.tobytes() for name, values in load_file(path).items()}
    return json.loads(path.read_text()) and None  # whole JSON


def results(data):
    found = [p for p in sorted(data.rglob("*")) if not any(part.startswith(".") for part in p.relative_to(data).parts)]
    return {str(p.relative_to(data)): content(p) for p in found if p.suffix in (".tif", ".safetensors", ".json")}


fresh = base / "fresh"
maker = os.fork()  # this process starts no threads, which a fork would lose
if not maker:
    for number in (1, 2):
        write_scene(fresh, size=128, seed=number)
    os._exit(0)
assert os.waitpid(maker, 0)[1] == 0
whole = Path(shutil.copytree(fresh, base / "whole"))
status, events, duration = run(whole)
assert status == 0, status
wanted = results(whole)
assert not [p for p in whole.rglob(".*")]
rng = random.Random(seed)
told = {"events": events, "killed": 0, "wrong": [], "half": [], "hidden": []}
for number in range(kills):
    data = Path(shutil.copytree(fresh, base / f"run{number}"))
    moment = {"event": rng.randint(1, events)} if number % 2 else {"seconds": rng.uniform(0, duration)}
    told["killed"] += run(data, **moment)[0] == signal.SIGKILL
    there = results(data)  # raises if a JSON file is not whole
    told["half"] += [(moment, n) for n, found in there.items() if not n.endswith("json") and found != wanted[n]]
    status = run(data)[0]
    if status or results(data) != wanted:
        told["wrong"].append((moment, status, [n for n, found in results(data).items() if found != wanted.get(n)]))
    told["hidden"] += [(moment, str(p.relative_to(data))) for p in data.rglob(".*")]
    shutil.rmtree(data)
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_maps(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", _DRIVER, str(tmp_path), str(KILLS), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{told['killed']} of {KILLS} runs were killed; {told['events']} events on files in a whole one")
    assert told["killed"] > KILLS * 0.7
    assert told["half"] == []  # files with a final name are complete and equal to those of an undisturbed run
    assert told["wrong"] == []
    assert told["hidden"] == []  # no temporary files, checkpoints or locks
