"""The errors whose text is written for the person who called: what was wrong, what is allowed, what to do next.

```
CxrError
├── ConfigError          a setting (configs.schema)
├── RadiographError      a film that cannot be read (data.radiograph)
├── ManifestError        a table of films (data.manifest)
├── LayoutError          a public data set as unpacked (data.layouts)
├── WeightsError         a bundle of weights (models.store)
├── EncoderWeightsError  weights that a network starts from (models.backbones)
├── TrainingError        a training (models.training)
├── InputError           the inputs of a run (run.inputs)
├── RunError             a run (run.runner)
├── EngineError          a cluster (run.engines)
├── ResultsError         a results folder (results)
├── EvaluationError, CalibrationError, CompareError, ReportError, BenchmarkError, WebError
```

The command line prints their text and ends with exit code 2; anything else is a fault of the program and shows where.
"""

from __future__ import annotations


class CxrError(Exception):
    """Whatever went wrong for a reason that the caller can mend. Every other error of the package derives from it."""
