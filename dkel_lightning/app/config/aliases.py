"""What no YAML file of ours uses, and a file from elsewhere might."""

from __future__ import annotations


def has_aliases(text: str) -> bool:
    """Tell whether a YAML file uses aliases. No file of ours does, and a few lines of them can stand for gigabytes.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    import yaml  # omegaconf brings it

    return "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
