"""The LightningModules: student, teacher, ensemble, and the coordinator of the three."""
