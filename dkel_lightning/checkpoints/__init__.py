"""Checkpoints: their format, and the archive that holds it."""
