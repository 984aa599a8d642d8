"""Run a Python program that finds the stand-in for mmcv's operators: python -m se_mm.mmcv_ext PROGRAM [arguments]."""

import runpy
import sys
from pathlib import Path

if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
    sys.exit('usage: python -m se_mm.mmcv_ext PROGRAM.py [arguments of the program]')
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as Python does for a program
runpy.run_path(sys.argv[0], run_name='__main__')
