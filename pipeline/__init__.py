"""What a person runs: the command line, the chain over many films, training and evaluation."""
