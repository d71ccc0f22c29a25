"""Sphinx's settings. `make docs` builds the site into `out/docs`: offline, warnings are errors."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import lapilli  # noqa: E402

project = "lapilli"
author = "the lapilli contributors"
copyright = author  # noqa: A001
release = version = lapilli.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "lapilli_docs",
]
exclude_patterns = ["_ext", "_outputs", "tables"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nitpicky = True
default_role = "name"

autodoc_typehints = "none"  # arguments are described, with shapes, in the docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Validity", "Reference", ("Guide", "Validity")]
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "lapilli"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a3b12", "color-brand-content": "#7a3b12"},
    "dark_css_variables": {"color-brand-primary": "#e0a070", "color-brand-content": "#e0a070"},
}
