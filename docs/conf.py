"Sphinx's settings for the site that scripts/docs.py builds."
import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))   # for anchors.py
ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
ini = ini["DEFAULT"]

project, copyright, release = ini["title"], ini["copyright"], ini["version"]
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme, html_title = "pydata_sphinx_theme", ini["title"]
html_static_path, html_css_files = ["."], ["style.css"]
exclude_patterns = ["_build"]
html_copy_source = html_show_sourcelink = False
html_baseurl = f"{ini['doc_host']}{ini['doc_baseurl']}/"
html_theme_options = dict(
    github_url=ini["git_url"], header_links_before_dropdown=8, show_prev_next=True,
    navigation_with_keys=False, navbar_align="left", show_toc_level=2,
    secondary_sidebar_items=["page-toc"], footer_start=["copyright"],
    footer_end=[], navbar_persistent=["search-button"], search_as_you_type=True)
html_sidebars = {"index": []}

nb_execution_mode = "off"   # outputs are those that the notebooks keep
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_block", "attrs_inline", "deflist"]
myst_heading_anchors = 6
myst_heading_slug_func = "anchors.anchor"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
