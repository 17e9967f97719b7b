"""What `pipeline data` looks at."""
