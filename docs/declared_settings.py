"""An extension of griffe, which reads the package for the site: a setting's meaning stands once, in its declaration.

`draw: Annotated[str, choice("First weights.", ...)]` is shown as a `str` with this sentence.
"""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprSubscript, ExprTuple, Extension


class DeclaredSettings(Extension):
    """Take type and documentation of annotated fields from their declarations."""

    def on_attribute_instance(self, *, attr: Attribute, **others: Any) -> None:
        """Read one field."""
        annotation = attr.annotation
        if not isinstance(annotation, ExprSubscript) or str(annotation.left) != "Annotated":
            return
        if not isinstance(annotation.slice, ExprTuple):
            return
        kind, declared, *_ = annotation.slice.elements
        texts = [node for node in ast.walk(ast.parse(str(declared))) if isinstance(node, ast.Constant)]
        said = [node for node in texts if isinstance(node.value, str) and node.value]
        if said:
            first = min(said, key=lambda node: (node.lineno, node.col_offset))
            attr.docstring = Docstring(str(first.value), parent=attr)
        attr.annotation = kind
