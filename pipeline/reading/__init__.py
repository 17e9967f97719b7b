"""`pipeline read`: people read a sample of a run's films; their labels, with sampling weights, calibrate and plan."""

from __future__ import annotations

from cxr_pipeline.configs.errors import CxrError


class ReadingError(CxrError, ValueError):
    """A folder that cannot be read so, or a reading that does not fit to it; says what to do."""
