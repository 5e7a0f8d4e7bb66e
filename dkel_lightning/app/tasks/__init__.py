"""The tasks of the command line, one file each; conf/task says which function each choice calls."""
