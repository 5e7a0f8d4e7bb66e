from dkel_lightning.modules.distillation import DistillationModule  # TEMPORARY
