"""Settings of the documentation site, which `./run.sh docs` builds in docs/_build/html.

Nothing is downloaded: no fonts, scripts or inventories of other sites.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

project = "mmoe_jax"
extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "docs.extension",
]
exclude_patterns = ["_build"]
smartquotes = False  # They would turn the dashes of flags into one.
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = "mmoe_jax"
html_static_path = ["style"]
html_css_files = ["drawings.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 4  # As GitHub names them, so that links work there, too.
myst_enable_extensions = ["colon_fence"]

autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"  # Attributes are listed in the docstrings.
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
