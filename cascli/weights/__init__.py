"""Where model weights come from: fetched, checked, converted once into the cache, then found there."""
