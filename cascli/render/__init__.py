"""Results as terminal output, Markdown, CSV, plots and HTML. Reads traces, metrics and tables; imports no torch."""
