"""`python -m cxr_pipeline` is the command `pipeline`."""

from cxr_pipeline.cli.main import main

if __name__ == "__main__":
    main()
