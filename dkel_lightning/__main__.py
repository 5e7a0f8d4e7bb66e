"""`python -m dkel_lightning`."""

from dkel_lightning.app.main import main

if __name__ == "__main__":
    main()
