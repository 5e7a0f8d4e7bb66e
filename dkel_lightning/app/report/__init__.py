"""Finished and unfinished runs, sweeps and comparisons as one HTML page each.

`of_run` and `of_groups` say what a page shows, `page.html` how it looks. Needs neither torch nor Lightning.
"""

from __future__ import annotations
