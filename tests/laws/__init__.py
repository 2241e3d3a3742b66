"""Law tests: cascli's tensor code and engine against the reference, exactly where possible, otherwise by sampling."""
