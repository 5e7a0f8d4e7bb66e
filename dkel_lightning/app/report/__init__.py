"""Finished and unfinished runs, sweeps and comparisons as one HTML page each.

`folders` finds what a folder holds, `collect` reads it into records whatever is damaged, `markup` and `charts` write
HTML and SVG, `of_run`, `of_sweep` and `of_comparison` say what a page shows. Needs neither torch nor Lightning.
"""

from __future__ import annotations
