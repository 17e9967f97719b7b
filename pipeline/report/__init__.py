"""report.html of a run or a training."""
