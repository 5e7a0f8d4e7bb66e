"""Processes, seeds, files and provenance."""
