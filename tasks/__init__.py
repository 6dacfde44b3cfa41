"""What users run: data preparation, music continuation, the demo, reports, and the command line over all of it."""

if __name__ == "tasks":
    raise ImportError("this package is called xcodec_lm.tasks; write `import xcodec_lm.tasks`")
