"""The command line: `python -m dkel_lightning` and `dkel`."""
