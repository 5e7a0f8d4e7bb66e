"""The application: command line, tasks, sweeps."""
