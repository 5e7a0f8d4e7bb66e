"""Lightning's own command line: what `DistillationModule.build` takes is `--model.<name>`, any data module `--data`.

    python examples/lightning_cli.py fit --config=examples/lightning_cli.yaml --model.method=pcl

Then `test`, `validate` and `predict` with `--config=` the config.yaml that Lightning wrote beside the run's logs, and
`--ckpt_path=`. `fit --help` lists all arguments.
"""

from dkel_lightning import DistillationCLI

if __name__ == "__main__":
    DistillationCLI()
