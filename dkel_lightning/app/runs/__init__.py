"""The folder of a run: what is written there, and its one reader."""
