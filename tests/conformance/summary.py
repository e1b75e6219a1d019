"""What the suite said: summary.py RESULTS, a line for each test that failed and one of sums."""
import pathlib
import sys
import xml.etree.ElementTree

passed, failed = 0, {}
for report in sorted(pathlib.Path(sys.argv[1]).rglob("junit*.xml")):
    for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        failure = case.find("failure")
        if failure is None:
            passed += 1
        else:
            failed[case.get("name")] = " ".join((failure.text or "").split())[:300]
for name, reason in sorted(failed.items()):
    print(f"FAILED {name}\n       {reason}")
print(f"conformance: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed) or not passed)
