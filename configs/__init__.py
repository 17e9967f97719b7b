"""Settings: the schema and the presets a person starts from."""
