"""Loading models and running them: forward over new tokens, rewind, reset."""
