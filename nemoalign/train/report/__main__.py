"""python -m nemoalign.train.report RUN_DIR: draw the report of a run again."""

import sys
from pathlib import Path

from nemoalign.train.report.page import write_report

for name in sys.argv[1:]:
    sys.stdout.write(f"{write_report(Path(name))}\n")
