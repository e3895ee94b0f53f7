"""``python -m benchmarks core`` (or gram, krylov, networks): times a claim on JAX's device; writes benchmarks/results/."""

from enum import StrEnum
from typing import Annotated

import jax
import matplotlib as mpl
import typer

from benchmarks import core, gram, krylov, networks


class Claim(StrEnum):
    """The benchmarks there are."""

    CORE = "core"
    GRAM = "gram"
    KRYLOV = "krylov"
    NETWORKS = "networks"


RUN = {Claim.CORE: core.main, Claim.GRAM: gram.main, Claim.KRYLOV: krylov.main, Claim.NETWORKS: networks.main}


def main(
    claim: Annotated[Claim, typer.Argument(help="Which one.")],
    quick: Annotated[bool, typer.Option(help="Smallest sizes only; overwrites the results.")] = False,
) -> None:
    """Time a claim of the library against what a user would pick instead."""
    jax.config.update("jax_enable_x64", True)
    mpl.use("agg")
    RUN[claim](quick=quick)


if __name__ == "__main__":
    typer.run(main)
