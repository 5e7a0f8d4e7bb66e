"""LightningCLI: arguments of `DistillationModule.build` are `--model.<name>`, any data module is `--data`.

    python examples/lightning_cli.py fit --config=examples/lightning_cli.yaml --model.method=pcl

For `test`, `validate` and `predict` pass the config.yaml that Lightning wrote to the run's folder as `--config=`, and
`--ckpt_path=`. `fit --help` lists all arguments.
"""

from dkel_lightning import DistillationCLI

if __name__ == "__main__":
    DistillationCLI()
