"""Declarations of all settings: type, range, meaning and default. Do not import torch."""
