"""How Sphinx builds this site."""

import os
import sys
import zlib
from importlib.metadata import metadata
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.doctest import TestcodeDirective
from sphinx.util import parselinenos
from sphinx.writers.html5 import HTML5Translator
from sphinx_gallery.sorting import ExplicitOrder

# The gallery draws from the records with the functions of the benchmarks.
sys.path.insert(0, str(Path(__file__).parent.parent))

project = "balanced-sam"
author = copyright = "The balanced-sam authors"
release = version = metadata("balanced-sam")["Version"]
html_title = f"balanced-sam {version}"
html_logo = html_favicon = "static/mark.svg"
# The documentation's host says where it serves the site.
html_baseurl = os.environ.get(
    "READTHEDOCS_CANONICAL_URL", "https://balanced-sam.readthedocs.io/en/latest/"
)
html_context = {"baseurl": html_baseurl, "description": metadata("balanced-sam")["Summary"]}
templates_path = ["templates"]
html_theme = "furo"
html_theme_options = {
    "source_repository": "https://github.com/balanced-sam/balanced-sam",
    "source_branch": "main",
    "source_directory": "docs/",
    # Plots are drawn dark on white: a dark page turns their brightness and keeps their hues.
    "dark_css_variables": {"picture-filter": "invert(0.9) hue-rotate(180deg) brightness(1.15)"},
}
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
# The tutorial is reached by itself, without the list that would hold it alone.
exclude_patterns = ["_build", "tutorial", "gallery", "generated/tutorial/index.rst"]

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Scripts that run while the site is built, into pages of their own.
gallery = ["target_bins", "label_density", "weights_of_density", "ascent_step"]
gallery += ["error_by_bin", "loss_rise_by_region"]
sphinx_gallery_conf = {
    "examples_dirs": ["tutorial", "gallery"],
    "gallery_dirs": ["generated/tutorial", "generated/gallery"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": ExplicitOrder(
        ["rare_targets.py", *(f"{name}.py" for name in gallery)]
    ),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 60,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "reference_url": {"balanced_sam": None},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# reference.md lists the entries itself: no page is generated into the source tree.
autosummary_generate = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
# Defaults as written: `nullcontext`, not its repr.
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

# A warning in a code block is an error: the pages show loops that are right as they stand.
doctest_global_setup = """
import warnings
caught = warnings.catch_warnings()
caught.__enter__()
warnings.simplefilter("error")
"""
doctest_global_cleanup = "caught.__exit__(None, None, None)"

INVENTORIES = {
    "matplotlib": "https://matplotlib.org/stable",
    "numpy": "https://numpy.org/doc/stable",
    "python": "https://docs.python.org/3",
    "torch": "https://docs.pytorch.org/docs/stable",
    "torchmetrics": "https://lightning.ai/docs/torchmetrics/stable",
}


def write_inventories(app: Sphinx, config: Config) -> None:
    """Write the committed inventories as Sphinx reads them, so that the build needs no network."""
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for name, address in INVENTORIES.items():
        lines = (Path(app.confdir) / "inventories" / f"{name}.txt").read_text("utf-8").splitlines()
        entries = "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))
        header = (
            "# Sphinx inventory version 2\n"
            f"# Project: {name}\n"
            "# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        path = folder / f"{name}.inv"
        path.write_bytes(header.encode() + zlib.compress(entries.encode()))
        mapping[name] = (address, str(path))
    config.intersphinx_mapping = mapping


class LitTestcode(TestcodeDirective):
    """A block of code that is run, with lines lit as in a ``code-block``."""

    option_spec = TestcodeDirective.option_spec | {"emphasize-lines": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the block, which knows its lit lines."""
        found = super().run()
        if lines := self.options.get("emphasize-lines"):
            numbers = [i + 1 for i in parselinenos(lines, len(self.content))]
            for node in found:
                node["highlight_args"] = {"hl_lines": numbers}
        return found


def write_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write an equation as MathML, which browsers draw: no script from elsewhere."""
    as_block = isinstance(node, nodes.math_block)
    translator.body.append(str(tex2mathml(node.astext(), as_block=as_block)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write the inventories before intersphinx looks for them (it comes at priority 800)."""
    app.add_directive("testcode", LitTestcode, override=True)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("config-inited", write_inventories, priority=700)
