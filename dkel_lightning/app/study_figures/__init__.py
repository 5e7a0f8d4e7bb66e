"""Figures of the two analyses."""
