"""The options of ``sdntk networks``: the study's, and those of the paper's figures."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sdntk.cli_options import (
    MOST,
    MOST_ROUNDS,
    Download,
    Folder,
    Noise,
    Out,
    fraction,
    integers,
    known_dataset,
    not_negative,
    share,
)


def _integers_if_any(text: str | None) -> str | None:
    return None if text is None else integers(text)


@dataclasses.dataclass(frozen=True)
class NetworksOptions:
    """Options of :func:`networks`. Those of its experiments are None unless given: defaults are the
    study's, or those of the paper's figure.
    """

    figure: Annotated[
        int | None,
        typer.Option(
            help="Of the paper: 4 to 10, at its full settings; options below change them.",
            show_default="none: the study, minutes on two cores",
            min=4,
            max=10,
        ),
    ] = None
    network: Annotated[
        str | None,
        typer.Option(
            help="mlp, strided (convolutions that can overfit; neither in figures), small "
            "(convolutions that cannot), resnet18, resnet50 or vgg16.",
            show_default="mlp; figures: resnet50, vgg16 in the right half of 6",
        ),
    ] = None
    widths: Annotated[
        str | None,
        typer.Option(
            help="Of the mlp's hidden layers.", show_default="256,256", callback=_integers_if_any
        ),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, cifar10, cifar100, or an .npz file with x_train, y_train, "
            "x_test, y_test. Figures take images of 32 x 32 in colour.",
            show_default="digits; figures: cifar10, cifar100 in 8, 10 and the right half of 6",
            callback=known_dataset,
        ),
    ] = None
    folder: Folder = None
    download: Download = False
    loss: Annotated[
        str | None,
        typer.Option(
            help="squared (of the softmax) or cross-entropy.",
            show_default="squared; figures 5, 9, 10: cross-entropy",
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(help="soft or hard.", show_default="soft; figures 9, 10: hard"),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Rounds, the ordinary training included.",
            show_default="12",
            min=1,
            max=MOST_ROUNDS,
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Chains, each from weights of its own.",
            show_default="6; figures: 10",
            min=1,
            max=MOST,
        ),
    ] = None
    at_once: Annotated[
        int | None,
        typer.Option(help="Chains trained together.", show_default="all; one on a CPU", min=1),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(help="Of a round.", show_default="1000; figures: 64000", min=1, max=2**31 - 1),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images in a step.", show_default="64; figures: 16, with cifar100 64", min=1
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of Adam.",
            show_default="0.001; figures with cifar100: 0.0001",
            callback=not_negative,
        ),
    ] = None
    weight_decay: Annotated[
        list[float] | None,
        typer.Option(
            help="As a penalty's gradient; without --figure it may be given several times.",
            show_default="0.001, 0.01; figures: 0.0001, with cifar100 0.00005",
            callback=not_negative,
        ),
    ] = None
    augment: Annotated[
        bool | None, typer.Option(help="Crop and flip images.", show_default="no-augment")
    ] = None
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            help="Stop fresh networks at every round's loss, too.",
            show_default="in the left half of figure 6",
        ),
    ] = None
    bfloat16: Annotated[
        bool | None, typer.Option(help="Convolutions in bfloat16.", show_default="no-bfloat16")
    ] = None
    train: Annotated[
        int | None,
        typer.Option(
            help="Training images, balanced by class.", show_default="1000; figures: all", min=1
        ),
    ] = None
    held_out: Annotated[
        int | None,
        typer.Option(
            help="Held-out images, with noisy labels, to choose by (not in figures).",
            show_default="300",
            min=1,
        ),
    ] = None
    test: Annotated[
        int | None,
        typer.Option(help="Test images.", show_default="all, at most 2000; figures: all", min=1),
    ] = None
    label_noise: Annotated[
        float | None,
        typer.Option(
            help="Share of wrong training labels.",
            show_default="0.4; figures: 0.0",
            callback=share,
        ),
    ] = None
    noise: Annotated[
        Noise | None,
        typer.Option(
            help="Another class at random, or one fixed other class for each (not in figures).",
            show_default="symmetric",
        ),
    ] = None
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            help="Of the kernel's chains, as a fraction of ||y||^2/K; may be given several times "
            "(not in figures).",
            callback=fraction,
            show_default="0.01, 0.05, 0.2",
        ),
    ] = None
    measure_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between measurements on all images.",
            show_default="1000",
            min=1,
            max=2**31 - 1,
        ),
    ] = None
    kernel: Annotated[
        Path | None,
        typer.Option(
            help="A folder of sdntk ntk on the same data, whose curves to plot beside.",
            show_default="none",
        ),
    ] = None
    out: Out = Path("networks")

    def of_figure(self) -> dict[str, Any]:
        """What is given of a figure's settings, as :class:`paper_figures.Experiment` calls them.

        Raises:
            ValueError: an option that figures do not have.
        """
        given = self._given(_ONLY_OF_STUDY, "without --figure")
        decays = given.pop("weight_decay", None)
        if decays:
            if len(decays) > 1:
                raise ValueError("--weight-decay may be given once with --figure.")
            given["weight_decay"] = decays[0]
        if given.get("dataset", "").endswith(".npz"):
            raise ValueError("--dataset must be a name with --figure; a file goes without.")
        return given

    def of_study(self) -> dict[str, Any]:
        """What is given of the study's settings, as :class:`network_study.NetworkStudy` calls them.

        Raises:
            ValueError: an option that only figures have.
        """
        given = self._given(_ONLY_OF_FIGURES, "with --figure")
        for name, own in (("weight_decay", "weight_decays"), ("tolerance", "tolerances")):
            if name in given:
                given[own] = tuple(given.pop(name))
        if "widths" in given:
            given["widths"] = tuple(int(width) for width in given["widths"].split(","))
        if "noise" in given:
            given["noise_kind"] = given.pop("noise").value
        return given

    def _given(self, unknown: set[str], where: str) -> dict[str, Any]:
        others = {"figure", "folder", "download", "out"}
        given = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name not in others and (value := getattr(self, field.name)) not in (None, [])
        }
        for name in unknown & {*given}:
            raise ValueError(f"--{name.replace('_', '-')} goes {where} only.")
        if "label_noise" in given:
            given["noise_rate"] = given.pop("label_noise")
        return {name: value for name, value in given.items() if name not in ("at_once", "kernel")}


#: Options of ``networks`` that its two forms do not share.
_ONLY_OF_STUDY = {"widths", "held_out", "noise", "tolerance"}
_ONLY_OF_FIGURES = {
    "at_once",
    "augment",
    "early_stopping",
    "bfloat16",
    "measure_every",
    "kernel",
}
