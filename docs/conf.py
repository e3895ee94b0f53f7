"""Sphinx: the site of sdntk. ``uv run --group docs sphinx-build -W -n docs docs/_build``."""

import ast
import inspect
import os
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # citations.py

# What a notebook compiled is not compiled again by the next one, or by the next build.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / "_build" / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from citations import citations, with_anchors
from sphinx.util.nodes import make_refnode

import sdntk

project = "sdntk"
author = "The sdntk developers"
copyright = author  # noqa: A001
version = release = sdntk.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax's files are copied into the site: no network to read it
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute", "conf.py", "citations.py", "**.ipynb_checkpoints"]

# -- Pages ----------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- Notebooks: percent scripts, executed, and only where they changed since the last build --------
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_show_tb = True

# -- Reference ------------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "none"  # signature_as_written has them
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Raises", "params_style"),  # "ValueError, TypeError: ..." stays as it is written
    ("Warns", "params_style"),
    ("Attributes", "params_style"),
]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False

nitpicky = True
#: Types that signatures name and that have no page here. The inventories of other projects are on
#: the network, and the build asks for nothing there.
_WITHOUT_A_PAGE = {
    "jax and jaxtyping": "Array ArrayLike Bool DTypeLike Float Int Integer Key Num"
    " PyTree Shaped UInt8",
    "others, by their usual short names": "np.* ndarray nnx.* optax.* pd.* Axes Figure",
    "others, by their full names": "jax.* flax.* optax.* orbax.* neural_tangents.*",
    "Python": "Path Callable Iterable Iterator Mapping Sequence StrEnum IntEnum UserWarning",
    "aliases of sdntk, said in words where they are arguments": "AnyKernel AnySpectrum Augment"
    " Build Columns Criterion Folder Implementation InfiniteWidth Keep Loss MethodName NoiseKind"
    " Outputs PathLike Selection Source Style Targets Tile",
    "what the parts of sdntk hand to each other": "ChainSpec Description Identity MultiplierPath"
    " RitzPairs Errors FixedRound Inherited ApplyFn",
    "what sdntk's functions of kernels return, a Kernel each": "BrownianBridge BrownianMotion"
    " Constant CubicSpline EmpiricalNTK Laplace Linear Matern OnColumns PeriodicSpline Polynomial"
    " RBF",
}
nitpick_ignore_regex = [
    (r"py:.*", name.replace(".", r"\.").replace("*", ".*"))
    for names in _WITHOUT_A_PAGE.values()
    for name in names.split()
]

# -- Look -----------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = "sdntk"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # the sidebar has the search field
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}


def signature_as_written(app, what, name, obj, options, signature, return_annotation):
    """Signatures with the annotations that stand in the code: ``Float[Array, "T *Q"]`` is short
    there, and pages long once evaluated.
    """
    if what == "class":
        return _constructor(obj), None
    function = _syntax(obj)
    if not isinstance(function, ast.FunctionDef):
        return None
    returns = ast.unparse(function.returns) if function.returns else None
    return _arguments(function), returns


def _constructor(cls):
    """The arguments of a class that users build; of results, which they do not, nothing."""
    own = vars(cls).get("__init__")
    if inspect.isfunction(own) and not hasattr(cls, "__dataclass_fields__"):
        return _arguments(_syntax(own))
    fields = [node for node in _syntax(cls).body if isinstance(node, ast.AnnAssign)]
    settings = hasattr(cls, "__dataclass_fields__") and any(f.value for f in fields)
    if not settings or any("Array" in ast.unparse(f.annotation) for f in fields):
        return ""
    return f"({', '.join(ast.unparse(f).replace(' = field(', ' = (') for f in fields)})"


def _arguments(function):
    arguments = function.args.args
    if arguments and arguments[0].arg in ("self", "cls"):
        del arguments[0]
    return f"({ast.unparse(function.args)})"


def _syntax(obj):
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (TypeError, OSError, SyntaxError):
        return ast.Pass()


def skip_fields(app, what, name, obj, skip, options):
    """The fields of a named tuple are described by its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def keep_colon(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon in a property's first line for its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")


def link_citations(app, what, name, obj, options, lines):
    """In a docstring, every number cited of the paper or of a page of theory becomes a link, and
    |x| is a norm, no substitution of reStructuredText's.
    """
    text = "\n".join(
        line if line.lstrip().startswith(">>>") else line.replace("|", r"\|") for line in lines
    )
    for cited in reversed(citations(text)):
        number = text[cited.start : cited.end]
        text = f"{text[: cited.start]}:ref:`{number} <{cited.anchor}>`{text[cited.end :]}"
    lines[:] = text.split("\n")


def add_anchors(app, page, source):
    """On the pages of theory, every formula with a number is a target of links."""
    prefixes = {"theory": "eq-", "krylov_bounds": "krylov-eq-"}
    if page in prefixes:
        source[0] = with_anchors(source[0], prefixes[page])


def find_public_name(app, env, node, contnode):
    """A docstring may name an object by the module that defines it, or by its last name alone:
    the link leads to the one page that documents it.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    last = node["reftarget"].split(".")[-1]
    names = [name for name in domain.objects if name.split(".")[-1] == last]
    if len(names) != 1:
        return None
    found = domain.objects[names[0]]
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, contnode)


def setup(app):
    """The hooks above."""
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)
    app.connect("autodoc-process-docstring", link_citations)
    app.connect("source-read", add_anchors)
    app.connect("missing-reference", find_public_name)
