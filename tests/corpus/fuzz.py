"""Fuzzes the VMDK reader or the manifest loaders, by hand: what it finds is mended and kept beside this file.

    pip install atheris          # not in requirements.txt: only this program needs it
    python tests/corpus/fuzz.py vmdk -max_total_time=3600 -max_len=20000 FOLDER tests/corpus/vmdk
    python tests/corpus/fuzz.py manifest -max_total_time=3600 FOLDER tests/corpus/manifest
    python tests/corpus/fuzz.py crafted 1000 9000        # seeds of crafting.py, without atheris

FOLDER collects every input that reached new code. `-merge=1 NEW FOLDER` picks the few that reach all of it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT)]

MEASURED = {
    "vmdk": ("hyperflow.kvmhost.images.vmdk", "hyperflow.kvmhost.images.vmdk_scanner"),
    "manifest": (
        "hyperflow.manifest.documents",
        "hyperflow.manifest.faults",
        "hyperflow.manifest.rules",
        "hyperflow.manifest.section",
        "hyperflow.manifest.models",
        "hyperflow.manifest.load",
        "hyperflow.kvmhost.manifest_file",
    ),
}


def main(arguments: list[str]) -> None:
    """Run the fuzzer that the first argument names."""
    if arguments[1] == "crafted":
        crafted(int(arguments[2]), int(arguments[3]))
        return
    import atheris  # noqa: PLC0415 - a tool of developers

    with atheris.instrument_imports(include=list(MEASURED[arguments[1]])):
        for name in MEASURED[arguments[1]]:
            importlib.import_module(name)
        from tests.corpus import targets  # noqa: PLC0415 - after its modules are instrumented
    target = {"vmdk": targets.vmdk_file, "manifest": targets.manifest}[arguments[1]]
    folder = Path(tempfile.mkdtemp(prefix="hyperflow-fuzz-", dir="/dev/shm"))
    atheris.Setup([arguments[0], *arguments[2:]], lambda data: target(data, folder))
    atheris.Fuzz()


def crafted(first: int, last: int) -> None:
    """Try the files that some seeds craft; print those that show a defect."""
    from tests.corpus import crafting, targets  # noqa: PLC0415 - the path is set above

    outcomes: dict[str, int] = {}
    for seed in range(first, last):
        try:
            outcome = targets.vmdk_file(crafting.craft(seed)).split(":")[0]
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is what is looked for
            outcome = "defect"
            print(f"seed {seed}: {type(fault).__name__}: {fault}", flush=True)
        if outcome == "refused" and seed % 2 == 0:
            print(f"seed {seed}: a sound file is refused", flush=True)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)


if __name__ == "__main__":
    main(sys.argv)
