"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import sharedvol

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "sharedvol"
author = "the sharedvol developers"
copyright = "the sharedvol developers, Apache-2.0"
release = version = sharedvol.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands", "house"]
exclude_patterns = ["_ext", "examples/**/.venv"]
nitpicky = True
nitpick_ignore = [
    ("py:class", "Engine"),  # SQLAlchemy's: its documentation is not part of this site
    # In the signatures of documented classes that callers are given and do not make.
    ("py:class", "sharedvol.lint.rule.Violation"),
    ("py:class", "sharedvol.volume.record.ReplicaRecord"),
    ("py:class", "sharedvol.volume.registry.LifetimeLock"),
]
default_role = "py:obj"

# Pages are read on the forge, too: their links name files, `page.md#heading`.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True  # 0o666, not 438
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

smartquotes = False  # --option stays what it is

html_theme = "furo"
html_title = "sharedvol"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
