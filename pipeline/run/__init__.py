"""A run: which inputs, which chain, how films are read, judged and kept apart."""
