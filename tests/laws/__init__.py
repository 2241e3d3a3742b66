"""Law tests: cascli's tensors and its engine compared with the reference, exactly first, then by sampling."""
