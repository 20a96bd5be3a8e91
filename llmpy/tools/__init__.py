"""Conversion and description of files: the work behind `llmpy convert` and `llmpy info`."""
