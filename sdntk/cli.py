"""The command line, ``sdntk``: parses, runs, prints. It switches x64 on."""

import sys
from pathlib import Path
from typing import Annotated

import jax
import matplotlib as mpl
import typer
from rich.console import Console

import sdntk
from sdntk import illustration

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdntk {sdntk.__version__}, jax {jax.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Self-distillation in Hilbert space: what a round of retraining on one's own predictions does to a model."""


@app.command()
def illustrate(
    tolerance: Annotated[
        float | None,
        typer.Option(help="Mean squared error of each round's fit. [default: 0.045; with --seed, floor + 0.003]"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds, the ordinary fit included.")] = 6,
    seed: Annotated[int | None, typer.Option(help="Draw fresh noise. [default: the authors' own labels]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.", file_okay=False)] = Path("illustration"),
) -> None:
    """The paper's example: a table of every quantity of the theory, and six figures."""
    shown = illustration.illustrate(tolerance, rounds, seed)
    console = _console()
    console.print(illustration.table(shown))
    best = int(shown.test_error.argmin())
    console.print(
        f"{int(shown.run.active_rounds)} active rounds; closest to the true function after round {best} "
        f"(error {shown.test_error[best]:.5f}, round 0: {shown.test_error[0]:.5f})."
    )
    for path in illustration.save(shown, out):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _console() -> Console:
    """Standard output; wide enough for the tables when nobody's window sets the width."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def main() -> None:
    """Entry point: bad input ends with its message and exit status 2, not with a traceback."""
    jax.config.update("jax_enable_x64", True)
    mpl.use("agg")
    try:
        app()
    except (ValueError, TypeError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
