"""Terminal, Markdown, CSV, plots and HTML of what was found. Reads traces, metrics and tables; imports no torch."""
