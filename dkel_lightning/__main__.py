"""`python -m dkel_lightning`."""

from dkel_lightning.app.cli.main import main

if __name__ == "__main__":
    main()
