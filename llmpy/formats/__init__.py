"""Model files of every origin: load.py reads them, detect.py tells what a file is; one module or folder a format."""
