"""The settings that only the command line knows, by what they belong to."""
