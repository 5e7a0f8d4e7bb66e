"""`python -m dkel_lightning`."""

from dkel_lightning.cli import main

if __name__ == "__main__":
    main()
