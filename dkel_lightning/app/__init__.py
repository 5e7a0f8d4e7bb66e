"""The application on top of the library: command line, tasks, sweeps and comparisons."""
