"""Tasks of the command line; conf/task names their functions."""
