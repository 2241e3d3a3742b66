"""Law tests: cascli's tensors and its engine against the reference, exactly first and by sampling second."""
