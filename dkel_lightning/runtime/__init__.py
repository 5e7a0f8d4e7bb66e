"""Process and machine: ranks, locks, seeds, provenance, whole files."""
