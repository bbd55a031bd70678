"""The smallest example of every command that writes maps, models or scores."""

from __future__ import annotations

import shlex

import click
from click.testing import CliRunner

TINY = "--steps 6 --warmup-steps 3 --filters 2 --patch-size 16 --batch-size 2"
SHORT = "--steps 6 --filters 2"
LAYERS = "--roads roads.tif --buildings buildings.tif --waterways waterways.tif --waterbodies waterbodies.tif"
BUILD = f"build-prior --nlcd nlcd.tif {LAYERS} --scheme enviroatlas-5"
TRAIN = f"train --image naip.tif --prior prior.tif --seed 0 {TINY}"
MAP = "predict naip.tif --posterior prior.tif --probabilities --force"

RIVALS = {
    "soft-naive": SHORT,
    "hard-naive": SHORT,
    "sr": f"--nlcd nlcd.tif --patch-size 40 --batch-size 2 {SHORT}",
    "em": f"--patch-size 16 --batch-size 2 {SHORT}",
    "epitome": "--nlcd nlcd.tif --epitome-size 16 --steps 6",
}

STEPS: dict[str, tuple[str, ...]] = {
    "demo": ("demo --size 128 --filters 1 --device cpu -o demo --json",),
    "files": (
        f"{BUILD} -o prior.tif",
        "build-prior --nlcd nlcd.tif --scheme chesapeake-4 -o prior4.tif",
        "cooccurrence nlcd.tif labels.tif --scheme enviroatlas-5 --spread -o cooccurrence.csv",
        f"{BUILD} --cooccurrence cooccurrence.csv --encoding uint8 -o own_prior.tif",
        f"{BUILD} --labels points.csv -o sharp_prior.tif",
        *(
            f"{TRAIN} --loss {loss} -o {loss}.safetensors"
            for loss in ("qr", "qr-kl", "rq", "ce", "ce-argmax", "squared-error", "nll-union")
        ),
        f"{MAP} --model qr.safetensors --confidence --style --quicklook -o qr_r.tif",
        "predict naip.tif --model qr.safetensors --probabilities --encoding uint8 -o qr_q.tif",
        f"{MAP} --model rq.safetensors -o rq_r.tif",
        "predict naip.tif --model ce.safetensors -o ce_q.tif",
        f"{TRAIN} --members 2 --marginal running -o members.safetensors",
        f"{MAP} --model members.safetensors -o members_r.tif",
        f"{TRAIN} --starts 2 -o starts.safetensors",
        f"train --image naip.tif --prior prior.tif --recipe best {TINY} --members 2 -o best.safetensors",
        f"{MAP} --model best.safetensors -o best_r.tif",
        (
            f"train --image naip.tif --prior prior.tif --image east.tif --prior east_prior.tif "
            f"--scheme enviroatlas-5 {TINY} -o joint.safetensors"
        ),
        f"{MAP} --model joint.safetensors -o joint_r.tif",
        f"train --image naip.tif --labels labels.tif --scheme enviroatlas-5 {TINY} -o labelled.safetensors",
        (
            f"train --image naip.tif --labels labels.tif --prior prior.tif --scheme enviroatlas-5 "
            f"{TINY} -o aux.safetensors"
        ),
        "predict naip.tif --model labelled.safetensors -o labelled_q.tif",
        "predict naip.tif --prior prior.tif --model aux.safetensors -o aux_q.tif",
        f"{TRAIN} --init labelled.safetensors -o tuned.safetensors",
        "evaluate qr_r.tif labels.tif --json",
        (
            "evaluate qr_r.tif labels.tif --json --exclude points.gpkg --exclude-buffer 1.2 --figure figure.png "
            "--image naip.tif --prior prior.tif --model qr.safetensors"
        ),
        "evaluate labels4.tif labels.tif --map-map 1:10,2:40,3:70,4:20 --scheme enviroatlas-5",
        (
            f"tune --image naip.tif --prior prior.tif --validation-labels labels.tif --rates 1e-2,1e-3 {SHORT} "
            "--patch-size 16 --batch-size 2 --json -o tuning"
        ),
    ),
    "unet": (
        (
            "train --image naip.tif --prior prior.tif --network unet --steps 2 --warmup-steps 1 --filters 2 "
            "--patch-size 48 --batch-size 2 -o unet.safetensors"
        ),
        f"{MAP} --model unet.safetensors -o unet_r.tif",
    ),
    "learn-prior": (
        (
            f"learn-prior --nlcd nlcd.tif {LAYERS} --labels labels.tif --scheme enviroatlas-5 --steps 6 --filters 2 "
            "-o learned.safetensors"
        ),
        f"{BUILD} --learned learned.safetensors -o learned_prior.tif",
    ),
    "rivals": (
        *(
            f"train --image naip.tif --prior prior4.tif --method {method} {options} -o {method}.safetensors"
            for method, options in RIVALS.items()
        ),
        *(f"predict naip.tif --model {name}.safetensors --probabilities -o {name}_q.tif" for name in RIVALS),
        "epitome epitome.safetensors -o epitome.png",
        "self-epitome naip.tif --nlcd nlcd.tif --shrink 2 --probabilities -o self.tif",
        "self-epitome naip.tif --nlcd nlcd.tif --shrink 2 --published -o published.tif",
        "compare mine.yaml",
    ),
    "experiment": ("experiment rows.yaml --root . --json -o rows",),
    "workspace": (
        "run --city town --scheme enviroatlas-5 --filters 1 --tile west --quicklook --json",
        "run --city town --scheme enviroatlas-5 --filters 1 --tile west --maps q --json",
        "build-prior --city town --scheme enviroatlas-5 --tile east",
        f"train --city town --tile west --tile east --joint {TINY} -o joint_town.safetensors",
        "predict --city town --tile east --model joint_town.safetensors --force",
    ),
    "plan": (
        "plan --city village --scheme enviroatlas-5 --steps 6 --filters 2 -o plan.json",
        "run plan.json",
        "status plan.json --all",
        "mosaic plan.json -o mosaic.tif",
    ),
    "sample": (
        "sample labels.tif --scheme enviroatlas-5 --count 60 --least 10 -o drawn.gpkg",
        "evaluate labels.tif points.gpkg --scheme enviroatlas-5 --json",
    ),
    "cluster": (
        "cluster naip.tif -k 4 --steps 6 --filters 2 --near 3 --far 9 -o clusters.tif",
        (
            "assign clusters.tif --points points.csv --scheme enviroatlas-5 --draws 3 --probabilities "
            "--json -o assigned.tif"
        ),
        "assign clusters.tif --labels labels.tif --train-points 60 --scheme enviroatlas-5 --draws 3 -o few.tif",
    ),
    "paint": (
        "paint picture.png --prior drawing.png --class left=red --class right=blue --steps 6 --filters 2 -o painted",
        "paint picture.png --model painted/picture/model.safetensors -o painted_again",
    ),
    "density": (
        (
            "density naip.tif --coarse blocks.csv --block 20 --steps 8 --filters 2 --batch-size 4 --points cells.csv "
            "--positive cell --json -o density"
        ),
        "density naip.tif --coarse blocks.csv --block 20 --posterior --model density/model.safetensors -o density_r",
    ),
    "text": (
        "text documents.jsonl --tree tree.json --prior prior.npz --epochs 2 --save-prior saved.npz --json -o text.csv",
    ),
    "images": (
        "partial-labels digits.npz --epochs 2 --filters 2 --batch-size 16 --loss rq --loss ce --predictions -o partial",
        "rank digits.npz --epochs 2 --filters 2 --batch-size 16 --predictions -o ranks",
    ),
}
"""Command lines by part, in order; a later part may use files of an earlier one."""


def run_step(line: str, environment: dict[str, str]) -> str:
    """Run one command line in this process; return its standard output."""
    from landprior.cli import main as landprior

    result = CliRunner(env=environment).invoke(landprior, ["-q", *shlex.split(line)], prog_name="landprior")
    if result.exit_code:
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        message = f"landprior {line}\nended with {result.exit_code}: {result.output}"
        raise click.ClickException(message)
    return result.stdout
