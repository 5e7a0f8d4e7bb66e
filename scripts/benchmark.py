"""Time one training step: eager, `torch.compile`, and `torch.compile(mode="reduce-overhead")`.

    python scripts/benchmark.py --method dkel --backbone resnet32 --batch-size 128
    python scripts/benchmark.py --device cuda --precision bf16 --rounds 9 --steps 50

The step is forward, loss, backward, optimizer and the teacher's update, on random images. The modes take turns in one
process, in reverse order every second round. CSV goes to stdout: medians over the rounds, and the speedup over the
first mode as the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from dkel_lightning import DistillationModule
from dkel_lightning.schedules import Clock

MODES = ("eager", "compile", "reduce_overhead")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Time one training step in several modes of execution.")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all that the device has")
    parser.add_argument("--method", default="dkel")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--contiguous", action="store_true", help="contiguous instead of channels last")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them that do not count")
    chosen = parser.parse_args(arguments)
    # CUDA graphs, which reduce-overhead is about, need a CUDA device.
    chosen.modes = chosen.modes or (MODES if chosen.device.startswith("cuda") else MODES[:2])
    return chosen


def make_step(mode: str, settings: argparse.Namespace) -> Callable[[], None]:
    """Build a module with the same weights for every mode; the returned function makes one training step."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    execution = {"name": mode, "channels_last": not settings.contiguous}
    module = DistillationModule.build(
        settings.backbone, settings.classes, settings.method, settings.peers, schedules="shares", execution=execution
    )
    module.to(device).train()
    module.setup("fit")  # sets the memory layout and compiles the networks
    module.set_time(Clock(epoch=50, step=5000, steps_per_epoch=100, steps=10_000))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    size = settings.image_size
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    batch = images, torch.randint(settings.classes, (settings.batch_size,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        module.update_teacher()

    return step


def time_steps(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Return the milliseconds of one of `count` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / count


def measure(settings: argparse.Namespace) -> dict[str, tuple[float, list[float]]]:
    """Return the seconds of the first step, and the milliseconds of a step in each round, by mode."""
    device = torch.device(settings.device)
    steps = {mode: make_step(mode, settings) for mode in settings.modes}
    first = {mode: time_steps(step, 1, device) / 1000 for mode, step in steps.items()}
    rounds: dict[str, list[float]] = {mode: [] for mode in steps}
    for number in range(settings.rounds):
        for mode in settings.modes if number % 2 == 0 else settings.modes[::-1]:
            for _ in range(settings.warmup):
                steps[mode]()
            rounds[mode].append(time_steps(steps[mode], settings.steps, device))
    return {mode: (first[mode], rounds[mode]) for mode in steps}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the modes and print the table."""
    settings = parse_arguments(arguments)
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {vars(settings)}", file=sys.stderr)
    measured = measure(settings)
    _, reference = measured[settings.modes[0]]
    table = csv.writer(sys.stdout)
    table.writerow(["mode", "ms", "ms_low", "ms_high", "images_per_second", "speedup", "first_step_seconds"])
    for mode, (first, rounds) in measured.items():
        median = statistics.median(rounds)
        speedup = statistics.median(base / this for base, this in zip(reference, rounds, strict=True))
        spread = (f"{value:.4g}" for value in (median, min(rounds), max(rounds)))
        table.writerow([mode, *spread, f"{1000 * settings.batch_size / median:.4g}", f"{speedup:.3g}", f"{first:.3g}"])


if __name__ == "__main__":
    main()
