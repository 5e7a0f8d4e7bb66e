"""The command line: `python -m dkel_lightning` and `dkel`.

What happens, in order: `main.prepared` reads the arguments (`Invocation.of`), adds what they say to Hydra
(`checks.with_hydra`) and which checkpoint a resume means (`folders.with_checkpoint`), checks all that they lead to
(`checks.check`), and adds where it is written (`folders.with_folder`). A sweep takes its folder
(`sweep_session.begun`). Hydra composes, and calls `jobs.run` with each configuration, which takes the run's folder and
hands it to `tasks.run`. `saved_settings` lays what was given over what a run was begun with, there and in the check.
"""
