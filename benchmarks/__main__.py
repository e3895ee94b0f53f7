"""``python -m benchmarks core`` (or gram): times a claim on the device JAX finds; results go to benchmarks/results/."""

from enum import StrEnum
from typing import Annotated

import jax
import matplotlib as mpl
import typer

from benchmarks import core, gram


class Claim(StrEnum):
    """The benchmarks there are."""

    CORE = "core"
    GRAM = "gram"


RUN = {Claim.CORE: core.main, Claim.GRAM: gram.main}


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
