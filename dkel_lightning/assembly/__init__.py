"""From settings to a DistillationModule."""
