"""``python -m benchmarks``: times every claim, or one, on JAX's device; tables, JSON and plots go
to benchmarks/results/.
"""

import os
import sys
from enum import StrEnum
from typing import Annotated

import jax
import matplotlib as mpl
import typer

from benchmarks import (
    accelerator,
    chains,
    cifar10,
    claims,
    core,
    estimators,
    gram,
    networks,
    nystrom,
    report,
    rounds,
    scale,
    selection,
    training,
)


class Claim(StrEnum):
    """The benchmarks there are."""

    CORE = "core"
    GRAM = "gram"
    CHAINS = "chains"
    SELECTION = "selection"
    ESTIMATORS = "estimators"
    NETWORKS = "networks"
    ROUNDS = "rounds"
    TRAINING = "training"
    CIFAR10 = "cifar10"
    NYSTROM = "nystrom"
    ACCELERATOR = "accelerator"
    SCALE = "scale"


RUN = {
    Claim.CORE: core.main,
    Claim.GRAM: gram.main,
    Claim.CHAINS: chains.main,
    Claim.SELECTION: selection.main,
    Claim.ESTIMATORS: estimators.main,
    Claim.NETWORKS: networks.main,
    Claim.ROUNDS: rounds.main,
    Claim.TRAINING: training.main,
    Claim.CIFAR10: cifar10.main,
    Claim.NYSTROM: nystrom.main,
    Claim.ACCELERATOR: accelerator.main,
    Claim.SCALE: scale.main,
}


def main(
    claim: Annotated[
        Claim | None, typer.Argument(help="Which one. [default: all, one after another]")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Smallest sizes only; kept beside the results.")
    ] = False,
    kept: Annotated[
        bool, typer.Option("--kept", help="Run nothing: show what the last runs left.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail where a figure is 20% behind its goal.")
    ] = False,
) -> None:
    """Time the library's claims against what a user would pick instead, and show a row for each."""
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # one of them has processes of its own
    jax.config.update("jax_enable_x64", True)
    mpl.use("agg")
    for name in [] if kept else [claim] if claim else list(Claim):
        RUN[name](quick=quick)
    records = {
        name: record for name, record in claims.kept(quick=quick).items() if claim in (None, name)
    }
    rows = claims.table(records)
    title = "Claims, and the goals stated for them"
    if claim or kept:
        report.show(title, rows)
    else:
        report.write(
            report.record_name("claims", quick=quick),
            title,
            {"slack of --check": claims.SLACK},
            rows,
        )
    behind = claims.fallen_behind(rows)
    if check and behind:
        print("fallen behind by more than 20%:", *behind, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
