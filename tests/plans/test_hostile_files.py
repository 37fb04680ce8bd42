"""A hostile plan or manifest costs little and is refused in a few words, whatever is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = 768 << 20  # bytes of address space, Python and its libraries included: one of these files took 16 GiB
SECONDS = 60  # of processor time for all of them; one took 235

PLAN = """\
plan: web
vcenter: {connection: vcenter}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /staging, output_directory: /images}
vms:
  - name: web01
"""
MIB = 1 << 20
FULL = MIB - 500  # bytes that a plan may have, and a little less
LAUGHS = "a: &a [lol]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghij")
)

PLANS: dict[str, tuple[str | bytes, str]] = {
    "billion-laughs": (LAUGHS, "anchor or alias 'a', expected none (line 1"),
    "anchor": (PLAN + "  - &x {name: web02}\n", "anchor or alias 'x', expected none (line 7"),
    "alias": (PLAN + "  - *x\n", "anchor or alias 'x', expected none (line 7"),
    "long-anchor": ("a: &" + "k" * FULL, "anchor or alias 'kkk"),
    "merge-key": (PLAN.replace("- name: web01", "- <<: {name: web01}"), 'vms[0]["<<"]: found an unknown key'),
    "key-twice": (PLAN + "plan: other\n", "plan: found the key twice (first in line 1), expected"),
    "key-twice-inside": (PLAN + "    name: web02\n", "vms[0].name: found the key twice"),
    "keys-twice": ("a: 1\n" * (FULL // 5), "more values, expected at most 50000"),
    "10-mb": (b"#" * (10 * MIB), "more than 1048576 bytes"),
    "deep-flow": ("[" * FULL, "deeper nesting, expected at most 32"),
    "deep-blocks": ("- " * (FULL // 2), "deeper nesting, expected at most 32"),
    "deep-keys": ("".join(" " * n + "a:\n" for n in range(1000)), "deeper nesting, expected at most 32"),
    "1e400": (PLAN + "limits: {parallel_disks: 1e400}\n", "limits.parallel_disks: found Infinity"),
    "many-digits": (PLAN + f"limits: {{parallel_disks: {'9' * 90}}}\n", "limits.parallel_disks: found 99999"),
    "more-digits": (PLAN + f"limits: {{parallel_disks: {'9' * 9000}}}\n", 'limits.parallel_disks: found Infinity'),
    "date": (PLAN.replace("plan: web", "plan: 2026-01-01T00:00:00Z"), 'plan: found "2026-01-01T00:00:00Z", expected'),
    "date-for-a-number": (PLAN + "limits: {parallel_disks: 2026-01-01}\n", 'parallel_disks: found "2026-01-01"'),
    "tab": (PLAN + "\tlimits: {}\n", "found a tab, expected blanks: indent with them (line 7, column 1)"),
    "tab-inside": (PLAN.replace("  - name", "\t- name"), "a tab, expected blanks: indent with them (line 6"),
    "tab-after": (PLAN + "    labels: [a]\n\tdrift: warn\n", "a tab, expected blanks: indent with them (line 8"),
    "no-tab": (PLAN.replace("web01", "@web01"), "character that cannot start any token, expected a YAML"),
    "not-utf-8": (PLAN.encode() + b"  - name: web\xe402\n", "offset 180, expected text in UTF-8 (line 7, column 14)"),
    "utf-16": (PLAN.encode("utf-16"), "byte 0xff at offset 0, expected text in UTF-8 (line 1, column 1)"),
    "nul": (PLAN + "  - name: \0\n", "expected a YAML document"),
    "half-a-character": (PLAN + '  - name: "\\ud800"\n', "invalid Unicode character escape"),
    "tag": (PLAN.replace("web\n", "!!python/object/apply:os.system [id]\n"), "expected plain data without a tag"),
    "long-tag": ("a: !" + "k" * FULL, "found tag '!kkk"),
    "tags": ("- !x b\n" * (FULL // 8), "more values, expected at most 50000"),
    "unknown-keys": (PLAN + "".join(f"k{n}: 1\n" for n in range(20_000)), "19900 faults more, expected none"),
    "long-value": ("plan: " + "a" * FULL, 'plan: found "aaaa'),
    "bad-vms": (PLAN + "  - {}\n" * 45_000, "vms: found a list of 45001, expected at most 2000"),
    "empty": ("", "found nothing, expected a YAML document"),
    "blanks": (" " * FULL, "found nothing, expected a YAML document"),
    "two-documents": (PLAN + "---\n" + PLAN, "expected a single document"),
}  # fmt: skip

FILE = 8 * MIB - 100  # bytes that a manifest may have, and a little less
MANIFESTS: dict[str, tuple[str, str]] = {
    "empty-disks": ('{"disks": [' + ",".join(["{}"] * (FILE // 3 - 20)) + "]}", "more values"),
    "numbers": ('{"disks": [' + "1," * (FILE // 2 - 20) + "1]}", "more values"),
    "keys-twice": ("{" + ",".join(['"a":1'] * (FILE // 6 - 5)) + "}", "more values"),
    "hooks": ('{"a": [' + ",".join(['{"hook":1}'] * (FILE // 11 - 9)) + "]}", "more values"),
    "unknown-keys": (
        json.dumps({"manifest_version": "1.0", "disks": [], "pipeline": {f"k{n}": 1 for n in range(49_000)}}),
        "faults more, expected none",
    ),
    "disks-without-anything": ('{"disks": [' + ",".join(["{}"] * 49_000) + "]}", "faults more, expected none"),
    "deep": ("[" * FILE, "deeper nesting"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What is said of each file, by a process with little memory and time."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in PLANS.items():
        (folder / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, (text, _) in MANIFESTS.items():
        (folder / f"{name}.json").write_text(text)
    program = (
        "import json, resource, sys; from pathlib import Path;"
        "from hyperflow.manifest.faults import DocumentError; from hyperflow.manifest.load import load_manifest;"
        "from hyperflow.plans.load import load_plan;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}));"
        f"resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))\n"
        f"for path in sorted(Path({str(folder)!r}).iterdir()):\n"
        "    try: (load_manifest if path.suffix == '.json' else load_plan)(path); faults = []\n"
        "    except DocumentError as error: faults = list(map(str, error.faults))\n"
        "    print(json.dumps([path.name, faults]), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    answers: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    yield dict(answers)


@pytest.mark.parametrize("name", PLANS)
def test_a_hostile_plan_is_refused_in_a_few_clear_words(said: dict[str, list[str]], name: str) -> None:
    faults = said[f"{name}.yaml"]
    assert any(PLANS[name][1] in fault for fault in faults), faults[:5]
    assert len("\n".join(faults)) < 40_000


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused_in_a_few_clear_words(said: dict[str, list[str]], name: str) -> None:
    faults = said[f"{name}.json"]
    assert any(MANIFESTS[name][1] in fault for fault in faults), faults[:5]
    assert len("\n".join(faults)) < 40_000
