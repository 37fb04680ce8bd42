"""``docs/performance.md``, made of what was measured last: ``python -m bench.page`` writes it, ``make bench`` too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.results import MEASURED, PAGE, RESULTS

HEAD = """# What was measured

Made by `make bench` of `bench/results.json` (medians) and `bench/measured.json` (every round, and where it was
measured); do not edit it here. Ours and the tool that a user would pick instead run in turns, in one go, on one
machine. Other machines give other figures: run it on yours.
"""
# What each name means; the goals are those the project has set itself.
MEANINGS = {
    "convert_qcow2": (
        "a staged VMDK (streamOptimized) to qcow2: its SHA-256 checked and the content digested in the same pass",
        "`sha256sum`, then `qemu-img convert -m 16 -W`",
    ),
    "convert_zstd": (
        "the same, clusters compressed by zstd",
        "`sha256sum`, then `qemu-img convert -c -m 16 -W` (zlib)",
    ),
    "convert_raw": ("the same, to sparse raw", "`sha256sum`, then `qemu-img convert -m 16 -W -O raw`"),
    "download": (
        "a disk over TLS from a server held at 200 MB/s: SHA-256 as it arrives, written to disk",
        "`curl -o`",
    ),
    "download_decoded": ("the same, and the image made while the disk arrives", "`curl -o`, which makes no image"),
    "bandwidth_off_percent": (
        "four downloads that share a limit of 50 MB/s: how far their rate is off it, processes' starts included",
        "-",
    ),
    "fix": (
        "the lab's guest made bootable on virtio: appliance, fstab, initramfs of every kernel, GRUB",
        "`virt-v2v-in-place`",
    ),
    "migration": (
        "the demo's whole DAG, first task queued to last one done, boot proof included",
        "the sum of its stages' own seconds",
    ),
    "peak_rss_mib": (
        "largest memory of any stage, of those that move data on 1 GiB and on 8 GiB; the appliance's and the guest's "
        "own QEMU apart",
        "-",
    ),
    "manifest_ms": ("manifest of a VM with 64 disks, built and written", "-"),
    "dag_parse_1000_s": ("plans of 1,000 VMs read by Airflow's DAG processor", "-"),
    "dag_start_s": ("what one task of these reads when it starts", "-"),
    "wave_1000_s_per_task": (
        "1,000 VMs planned, waves of them moved on PostgreSQL, hosts and vCenter answer at once: seconds a task",
        "-",
    ),
}


def page() -> str:
    """Write what was measured as Markdown."""
    results = json.loads(RESULTS.read_text())
    measured = json.loads(MEASURED.read_text())
    return "\n".join([HEAD, *_table(results), "", *_spread(results, measured), "", *_places(measured), ""])


def _table(results: dict[str, Any]) -> Iterator[str]:
    yield "| | what | beside | ours | beside it | ratio | goal | |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, (what, beside) in MEANINGS.items():
        if name not in results:
            yield f"| `{name}` | {what} | {beside} | not measured | | | | |"
            continue
        one = results[name]
        value = one["ours"] if one["ratio"] is None else one["ratio"]
        ratio, peer = ("", "") if one["ratio"] is None else (f"{one['ratio']:.2f}", f"{one['peer']:.2f} {one['unit']}")
        verdict = "met" if value <= one["goal"] else "**not met**"
        ours = f"{one['ours']:.2f} {one['unit']}"
        yield f"| `{name}` | {what} | {beside} | {ours} | {peer} | {ratio} | {one['goal']:g} | {verdict} |"


def _spread(results: dict[str, Any], measured: dict[str, Any]) -> Iterator[str]:
    yield "Smallest and largest of all rounds, and the CPU time that ours takes, which is the least on its cores.\n"
    for name in MEANINGS:
        if name in results:
            rounds = measured[name]["rounds"]
            told = ", ".join(
                f"{'beside it' if who == 'peer' else who} {min(values):.2f} to {max(values):.2f} ({len(values)})"
                for who, values in rounds.items()
            )
            cpu = measured[name].get("cpu_seconds")
            least = (
                f"; {cpu:.2f} s of CPU, {cpu / measured[name]['machine']['cores']:.2f} s on all cores" if cpu else ""
            )
            yield f"* `{name}`: {told} {results[name]['unit']}{least}"


def _places(measured: dict[str, Any]) -> Iterator[str]:
    yield "Where and when:\n"
    places: dict[str, list[str]] = {}
    for name, one in measured.items():
        where = one["machine"]
        machine = f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB"
        system = (
            f"{where['system']}, {where['kernel']}, QEMU {where['qemu']}, Python {where['host_python']} on the host"
        )
        told = f"{machine}, {system}, commit {where['commit']}, {where['date'][:10]}"
        places.setdefault(told, []).append(f"`{name}`")
    for told, names in places.items():
        yield f"* {', '.join(names)}: {told}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
