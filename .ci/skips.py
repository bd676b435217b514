"""Fails when a pytest report (JUnit XML) holds a skipped test, or none at all: CI has what tests need."""

# ruff: noqa: INP001, T201 (a script that prints)

import sys
from xml.etree import ElementTree as ET

cases = list(ET.parse(sys.argv[1]).iter("testcase"))  # noqa: S314 (pytest's own file)
skipped = [(case, skip) for case in cases for skip in case.iter("skipped")]
for case, skip in skipped:
    print(f"skipped: {case.get('classname')}.{case.get('name')}: {skip.get('message')}")
if not cases:
    print("no test ran")
sys.exit(1 if skipped or not cases else 0)
