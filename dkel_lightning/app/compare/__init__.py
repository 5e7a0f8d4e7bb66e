"""Comparisons of methods over seeds."""
