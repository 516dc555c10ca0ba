"""Run a module as `python -m` does, in a folder and with an output of errors of its own.

    in_folder.py FOLDER ERRORS MODULE …

`tests.warm_start.run_warm` starts it as a fork, which has the folder of its server, and one output.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    _, folder, errors, *sys.argv = sys.argv
    os.chdir(folder)
    with open(errors, "wb") as file:
        os.dup2(file.fileno(), 2)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
