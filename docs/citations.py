"""The citations in docstrings, and the anchors of the site that they lead to.

A docstring cites a formula by its place: "Mobahi et al. 2020, eqs. 17, 30", "Prop. 3", "section
3.4", "docs/theory.md, section 6", "docs/krylov_bounds.md, (4)". Sphinx (conf.py) turns each number
into a link, and tests/test_docs.py checks that each has an anchor. No import but Python's own.
"""

import re
from typing import NamedTuple


class Citation(NamedTuple):
    """One cited number: where it stands in the text, and the anchor of its place."""

    start: int
    end: int
    anchor: str


#: Where anchors begin, by the work that is cited and by what of it is cited.
_PREFIXES = {
    "paper": {
        "eq": "eq-",
        "prop": "prop-",
        "theorem": "theorem-",
        "section": "paper-section-",
        "appendix": "paper-appendix-",
    },
    "theory": {"eq": "eq-", "section": "theory-section-"},
    "krylov": {"eq": "krylov-eq-", "(": "krylov-eq-"},
}

_NUMBER = r"(?:\d+(?:\.\d+)*|[A-F](?:\.\d+)?)(?![\w])"
_SEPARATOR = r"(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+to\s+|-)"
_NAME = r"[A-Z][a-z]\w*"

_TOKENS = re.compile(
    rf"""
    (?P<paper>Mobahi,?\s+(?:et\s+al\.|Farajtabar\s+and\s+Bartlett))
    | (?P<theory>theory\.md)
    | (?P<krylov>krylov_bounds\.md)
    | (?P<other>{_NAME}(?:\s+et\s+al\.|(?:,?\s+(?:and\s+)?{_NAME})*)\s+\(?(?:19|20)\d\d)
    | (?P<end>;|\n\s*\n|(?<!\bal)(?<!\beq)(?<!\beqs)(?<!\bProp)(?<!\bFig)\.\s+(?=[A-Z]))
    | \b(?P<kind>eq|Prop|Theorem|section|appendix|Appendix)(?:s|osition|ositions)?\.?\s+
      (?P<numbers>{_NUMBER}(?:{_SEPARATOR}{_NUMBER})*)(?!\s+of\s+[A-Z])
    | (?P<bracketed>\(\d+[a-z]?\)(?:{_SEPARATOR}\(\d+[a-z]?\))*)
    """,
    re.VERBOSE,
)


def citations(text: str) -> list[Citation]:
    """The numbers that a text cites of the paper, of theory.md and of krylov_bounds.md, in order.

    A number belongs to the work that was named last in its sentence, and to the paper if none was.
    Numbers of other works ("Saad 2011, section 6.6") have no anchor and are left out.

    >>> [c.anchor for c in citations("Source: Mobahi et al. 2020, Prop. 3 (eqs. 125-128).")]
    ['prop-3', 'eq-125', 'eq-128']
    >>> [c.anchor for c in citations("See theory.md, section 6; Saad 2011, section 6.6.")]
    ['theory-section-6']
    >>> [c.anchor for c in citations("By docs/krylov_bounds.md, (4), (6), the error is small.")]
    ['krylov-eq-4', 'krylov-eq-6']
    """
    found = []
    work = "paper"
    for token in _TOKENS.finditer(text):
        group = token.lastgroup
        if group in ("paper", "theory", "krylov", "other"):
            work = group
        elif group == "end":
            work = "paper"
        elif group == "bracketed":
            if work == "krylov":
                found += _numbers(token, "bracketed", _PREFIXES[work]["("])
        else:
            prefix = _PREFIXES.get(work, {}).get(token["kind"].lower())
            if prefix is not None:
                found += _numbers(token, "numbers", prefix)
    return found


def _numbers(token: re.Match[str], group: str, prefix: str) -> list[Citation]:
    start = token.start(group)
    pattern = r"\d+[a-z]?" if group == "bracketed" else _NUMBER
    return [
        Citation(start + m.start(), start + m.end(), prefix + m[0])
        for m in re.finditer(pattern, token[group])
    ]


_DISPLAY = re.compile(
    r"^(?P<indent>[ ]*)\$\$(?P<formula>.*?)\$\$(?:[ ]*\([a-z]+-(?P<label>\w+)\))?",
    re.MULTILINE | re.DOTALL,
)
_TAG = re.compile(r"\\tag\{([^}]*)\}")
_TARGET = re.compile(r"^[ ]*\(([\w.-]+)\)=[ ]*$", re.MULTILINE)


def with_anchors(page: str, prefix: str) -> str:
    r"""A MyST page whose numbered formulas are link targets: with the prefix "eq-", a formula with
    ``\tag{17}`` or with the label ``(any-17)`` has the anchor eq-17.
    """

    def add_targets(formula: re.Match[str]) -> str:
        indent, label = formula["indent"], formula["label"]
        numbers = _tags(formula["formula"]) + ([label] if label else [])
        targets = [f"{indent}({prefix}{number})=\n" for number in numbers]
        return "".join(targets) + formula[0]

    return _DISPLAY.sub(add_targets, page)


def anchors(page: str) -> list[str]:
    """The names of all link targets of a MyST page."""
    return _TARGET.findall(page)


def _tags(formula: str) -> list[str]:
    """The numbers in the tags of a formula: "21, 22" and "125-127" stand for each of theirs."""
    numbers: list[str] = []
    for tag in _TAG.findall(formula):
        for part in tag.split(","):
            first, _, last = part.strip().partition("-")
            if last:
                numbers += [str(n) for n in range(int(first), int(last) + 1)]
            else:
                numbers.append(first)
    return numbers
