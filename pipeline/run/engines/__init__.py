"""What films are judged on: this process, or the workers of a Ray cluster."""
