"""The command line: parses, calls a job, renders. Heavy imports happen inside the commands."""
