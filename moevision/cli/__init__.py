"""The command line: thin files over `moevision.api` and `moevision.engine`, which they import when a command runs."""
