"""Terminal, Markdown and CSV views of runs. Reads traces and metrics only."""
