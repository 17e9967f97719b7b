"""Training, evaluation and calibration of the chain."""
