"""Papers on self-distillation, each a study of seconds: quantities of the paper beside the
library's.

A study is a module of the paper's name with a function ``run`` that returns a
:class:`sdntk.experiments.papers.findings.Finding`. Modules are imported on use, so that the list of
papers costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sdntk.experiments.papers.findings import Finding


class Paper(NamedTuple):
    """What is studied of a paper.

    Attributes:
        authors: and year.
        arxiv: its number there.
        claim: one line, as docs/theory.md says it.
    """

    authors: str
    arxiv: str
    claim: str


PAPERS = {
    "mobahi2020": Paper(
        "Mobahi, Farajtabar and Bartlett 2020",
        "2002.05715",
        "rounds to a tolerance regularise more and more: the fit improves, then flattens, then is "
        "zero",
    ),
    "borup2021": Paper(
        "Borup and Andersen 2021",
        "2102.13088",
        "with the share alpha of true labels, rounds of ridge fits tend to the ridge fit with "
        "c/alpha",
    ),
    "das2023": Paper(
        "Das and Sanghavi 2023",
        "2301.13304",
        "the best weight of the teacher for the error of the parameter passes 1 as noise grows",
    ),
    "pareek2024": Paper(
        "Pareek, Du and Oh 2024",
        "2407.04600",
        "a weight for each round reaches every mixture of rounds; s rounds suffice for s distinct "
        "eigenvalues",
    ),
    "dang2026": Paper(
        "Dang, Patil and Rinaldo 2026",
        "2602.17565",
        "the best weight of the teacher, above 1 or below 0, and what it gains, where points and "
        "features are many",
    ),
    "dohmatob2024": Paper(
        "Dohmatob et al. 2024",
        "2402.07712",
        "retrained on its last output with noise, a fit's variance grows as t + 1; a ridge bounds "
        "it",
    ),
    "gerstgrasser2024": Paper(
        "Gerstgrasser et al. 2024",
        "2404.01413",
        "where labels accumulate, the variance stays below pi^2/6 of the first round's",
    ),
}


def study(name: str) -> "Finding":
    """Compute what is shown of a paper.

    Args:
        name: one of ``PAPERS``.

    Raises:
        ValueError: another name.
    """
    if name not in PAPERS:
        raise ValueError(f"name must be one of {', '.join(PAPERS)}; got {name!r}.")
    return importlib.import_module(f"{__name__}.{name}").run()
