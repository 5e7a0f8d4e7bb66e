"""The parts of the coordinator: the modules of student, teacher and ensemble, batches, targets, scores."""
