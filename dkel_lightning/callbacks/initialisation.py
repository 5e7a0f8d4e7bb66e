"""The teacher's initialisation scheme, before the first training batch."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import DataError
from dkel_lightning.modules.batch import unpack_checked
from dkel_lightning.runtime.processes import make_equal
from dkel_lightning.runtime.seeding import generator, seed_process

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule


class TeacherInitialisation(Callback):
    """Run the teacher's initialisation once, at the start of training; never on resume.

    Its batches come from a second loader, keyed by (seed, "init"), because re-iterating the Trainer's loader would take
    batches from training. On several processes gradients are averaged, and all end with equal parameters.

    Source: DKEL, released code.
    """

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        module: DistillationModule = pl_module
        teacher = module.teacher
        assert teacher is not None
        if bool(teacher.initialised):
            return
        # Weights may have been loaded into the student since the teacher was built.
        teacher.start_from(module.student.network)
        # The largest, because `lr_scale` lowers the rate of some groups.
        initial = max(float(group.get("initial_lr", group["lr"])) for group in trainer.optimizers[0].param_groups)
        rate = initial * teacher.settings.init_lr_scale
        with isolated_rng(pl_module, trainer.global_rank), forward_context(trainer):
            steps = teacher.settings.batches_of_initialisation(trainer.num_training_batches)
            teacher.initialise(extra_batches(trainer, module, steps), rate)
        make_equal([*teacher.network.parameters(), *teacher.network.buffers()])


def extra_batches(trainer: Trainer, module: DistillationModule, steps: int) -> Iterator[Batch]:
    """Draw `steps` training batches without touching the order of the Trainer's loader, with the teacher's views."""
    if steps == 0:
        return
    loaders, form = tree_flatten(trainer.train_dataloader)  # several of a CombinedLoader
    batches = [initialisation_batches(loader, module.seed, steps, trainer.global_rank) for loader in loaders]
    for index, parts in enumerate(zip(*batches, strict=True)):
        batch = tree_unflatten(parts, form)
        # The path of training batches, hooks of module and datamodule included.
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = module.read(trainer.strategy.batch_to_device(batch, module.device))
        peers, classes = module.student.num_peers, module.student.num_classes
        views, labels, indices = unpack_checked(batch, index, peers, classes, module.method.needs.teacher_views)
        # The teacher's views; rank 0 draws as a run of one process does.
        rank = (trainer.global_rank,) if trainer.global_rank > 0 else ()
        _, views = module.views_of_each(module.make_views(views, "init", index, *rank))
        yield Batch(views, labels, indices)


def initialisation_batches(loader: Any, seed: int, steps: int, rank: int) -> Iterator[Any]:
    """Draw `steps` training batches without touching the loader's own order.

    A loader with a method `initialisation_batches(seed, steps)` answers for itself. For a torch DataLoader over a
    map-style dataset a second one is made, shuffled by (seed, "init", rank), over the samples that its sampler or batch
    sampler gives; one without a length is iterated in its own order. Anything else is iterated again.
    """
    if hasattr(loader, "initialisation_batches"):
        yield from loader.initialisation_batches(seed, steps)
        return
    source = _second_loader(loader, generator(seed, "init", rank))
    done = 0
    while done < steps:
        before = done
        for batch in itertools.islice(source, steps - done):
            yield batch
            done += 1
        if done == before:
            raise DataError("The training loader gives no batches, so the teacher cannot be initialised.")


def _second_loader(loader: Iterable[Any], draws: torch.Generator) -> Iterable[Any]:
    if not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:  # samples are batches already
        again = copy.copy(loader)
        again._iterator = None  # persistent workers belong to the training
        return again
    settings: dict[str, Any] = {"collate_fn": loader.collate_fn}
    if loader.num_workers > 0 and loader.worker_init_fn is not None:  # it may open the files of the data set
        settings |= {"worker_init_fn": loader.worker_init_fn, "num_workers": 1}
    if loader.batch_size is None:
        batches: Any = _shuffled(loader.batch_sampler, draws)
        return DataLoader(loader.dataset, batch_sampler=batches, **settings)
    sampler = _shuffled(loader.sampler, draws)
    # BatchNorm would not take a last batch of one image.
    drop_last = not isinstance(sampler, Sized) or len(sampler) >= loader.batch_size
    return DataLoader(loader.dataset, loader.batch_size, sampler=sampler, drop_last=drop_last, **settings)


def _shuffled(sampler: Iterable[Any], draws: torch.Generator) -> Iterable[Any]:
    """Shuffle what a sampler with a length gives; the generator that training draws from is not moved."""
    if not isinstance(sampler, Sized):
        return sampler
    inner = getattr(sampler, "sampler", getattr(getattr(sampler, "dataset", None), "_sampler", None))
    with contextlib.ExitStack() as restored:
        for part in (sampler, inner):  # of a batch sampler, or of Lightning's wrapper on several processes
            own = getattr(part, "generator", None)
            if isinstance(own, torch.Generator):
                restored.callback(own.set_state, own.get_state())
        return SubsetRandomSampler(list(itertools.islice(sampler, len(sampler))), draws)


@contextlib.contextmanager
def isolated_rng(module: DistillationModule, rank: int) -> Iterator[None]:
    """Key what layers and transforms draw by (seed, "init", rank), and leave training's random numbers untouched."""
    with isolate_rng(include_cuda=module.device.type == "cuda"):
        seed_process(module.seed, "init", rank)
        yield


def forward_context(trainer: Trainer) -> contextlib.AbstractContextManager[Any]:
    """Return the run's autocast, or none for fp16: these few steps have no loss scaler, and run in float32."""
    plugin = trainer.precision_plugin
    if getattr(plugin, "scaler", None) is not None:
        return contextlib.nullcontext()
    return plugin.forward_context()
