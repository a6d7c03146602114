"""The command line. A command file imports nothing heavy before its command runs."""
