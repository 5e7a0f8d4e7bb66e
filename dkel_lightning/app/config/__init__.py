"""The configuration of the command line."""
