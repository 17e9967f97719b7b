"""DICOM on its way out and in: what a run writes for a PACS, and the programs that talk to one."""
