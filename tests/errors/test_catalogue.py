"""The catalogue knows every error that the package can make, and nothing else."""

from __future__ import annotations

import collections
import re
from functools import cache
from pathlib import Path

import pytest
from hyperflow.errors import catalogue
from hyperflow.errors.catalogue import Entry, areas, entry_of, explain, find, letters_of
from hyperflow.errors.page import PAGE, page

from tests.errors import raised
from tests.errors.raised import Made, error_classes, made

PACKAGES = (
    "operators",
    "triggers",
    "hooks",
    "vsphere",
    "plans",
    "manifest",
    "kvmhost",
    "workflows",
    "cli",
    "notifications",
)
LEAST_LETTERS = 8  # of a pattern; one with fewer would know messages that it does not mean
SHORT = {"virsh {}:", "{}.{}: missing", "{} answered: {}", "QEMU ended", "no regular file", "{}: answers {} {}"}

# Errors that no person meets: what becomes of them.
INTERNAL = {
    "NotUnderstood": "a netplan file that is not understood: interfaces.py makes a warning of it",
    "_Unfit": "why a result.json is none: stands behind 'left no result that can be read', which has an entry",
    "_GivenUp": "says nothing",
}
# Texts that the source does not show where the error is made, by file and function: where they come from.
TEXT_FROM_ELSEWHERE = {
    "cli/airflow_api.py _send": "Airflow's own words",
    "cli/wave.py survey": "what the run has left as its failure",
    "kvmhost/images/codecs.py compress": "libzstd's own words; it is given no data that it can refuse",
    "kvmhost/images/conversion.py _decode": "a VmdkError or CodecError behind the disk's path",
    "kvmhost/images/decode.py _finish": "a VmdkError or CodecError",
    "kvmhost/images/decode.py _drained": "a VmdkError or CodecError",
    "kvmhost/images/files.py open_regular": "the operating system's words, as the examples below",
    "kvmhost/images/qemu.py run": "qemu-img's own words, as the examples below",
    "kvmhost/images/qemu.py run_long": "qemu-img's own words, as the examples below",
    "kvmhost/images/receive.py update": "the operating system's words, which stage.explain adds advice to",
    "kvmhost/images/sources.py read_header": "a VmdkError behind the disk's path",
    "kvmhost/ledger.py read": "the operating system's words, as the examples below",
    "kvmhost/manifest_file.py read_disks": "the faults that were collected in it, which have entries",
    "kvmhost/probe/watch.py _failure": "Machine.dead_end: the texts of DEAD_ENDS, which have entries",
    "kvmhost/stage.py creating": "a LedgerError",
    "kvmhost/stage.py run_stage": "an unforeseen fault: the operating system's words with ADVICE, or the -000",
    "kvmhost/stages/convert.py _require_no_domain": "domains.use_fault, whose text has an entry",
    "kvmhost/stages/download.py _transport_faults": "the operating system's words, as the examples below",
    "kvmhost/stages/download.py read": "the operating system's words; _transport_faults says where it happened",
    "kvmhost/stages/janitor.py _require_own_domain": "domains.why_left, whose texts have entries",
    "operators/base.py take_result": "what the trigger tells: texts of triggers/ and kvmhost/job_state.py",
    "operators/base.py accept_result": "the stage's own error behind stage and host",
    "operators/convert_manifest.py perform": "a DocumentError, whose faults have entries",
    "operators/convert_manifest.py prepare": "the stage's own error behind the manifest's path",
    "operators/janitor.py _clean": "the stage's own error",
    "operators/manifest.py perform": "a ManifestError, whose faults have entries",
    "operators/preflight.py resolve": "a PlanError, whose faults have entries",
    "operators/preflight.py read_source": "a VsphereError",
    "operators/source.py perform": "a VsphereError, or the hook's ValueError",
    "cli/wave.py find_wave": "the faults of the plan, which have entries",
    "operators/survey.py execute": "a VsphereError",
    "operators/survey.py read": "the faults of the plan, which have entries",
    "operators/wave.py load_wave": "the faults of the plan, which have entries",
    "operators/wave_check.py read_asked": "a PlanError, whose faults have entries",
    "operators/aftermath.py work": "a VsphereError",
    "operators/source.py at_vcenter": "a VsphereError",
    "operators/rollback.py taken_down": "the own error of the stage stop",
}
# Places whose texts nobody meets.
UNSEEN_BY_PEOPLE = {
    "kvmhost/job_result.py _integer": "becomes an _Unfit",
    "kvmhost/images/content.py set": "a defect of ours, for which there is the -000",
    "manifest/documents.py (module)": "stands in for a fault that is not known yet",
}
# Texts that stand in a list within a message that has an entry of its own.
WITHIN_ANOTHER = {"kvmhost/probe/evidence.py", "vsphere/nics.py", "vsphere/drift.py"}
# What other programs and the operating system say, as far as the catalogue has words for it.
EXAMPLES = (
    "/var/lib/hyperflow/staging/web01/disk-0.vmdk: No such file or directory",
    "/var/lib/hyperflow/staging/.hyperflow/ledger/dag/run: Permission denied",
    "qemu-img info: Could not open '/x.vmdk': unsupported VMDK version 3",
    "The conn_id `kvm01` isn't defined",
    "python: found 3.6, expected 3.9 or newer",
    "esxi1.example.org:443: Connection refused",
    "esxi1.example.org:443: No route to host",
    "esxi1.example.org:443: Network is unreachable",
    "esxi1.example.org:443: Name or service not known",
    "esxi1.example.org:443: Temporary failure in name resolution",
)


@cache
def texts() -> tuple[Made, ...]:
    """Every text of an error that a person may meet."""
    found = [
        one
        for one in made(PACKAGES)
        if one.error not in INTERNAL
        and one.place not in UNSEEN_BY_PEOPLE
        and not (one.error == raised.COLLECTED and one.place.partition(" ")[0] in WITHIN_ANOTHER)
    ]
    return (*found, *(Made("(another program)", "(its words)", text) for text in EXAMPLES))


def entries() -> list[Entry]:
    return [entry for area in areas() for entry in area.entries]


@cache
def known_by(text: str) -> list[tuple[str, str]]:
    """The patterns that know most of a text: (code, pattern) each."""
    plain = " ".join(text.split())
    fitting = [
        ((not entry.general, letters_of(pattern)), entry.code, pattern)
        for entry in entries()
        for pattern in entry.patterns
        if fits(plain, pattern)
    ]
    best = max((rank for rank, _, _ in fitting), default=None)
    return [(code, pattern) for rank, code, pattern in fitting if rank == best]


def fits(text: str, pattern: str) -> bool:
    """As the catalogue's own rule, said otherwise: the parts stand in the text in their order."""
    return expression(pattern).search(text) is not None


@cache
def expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*?".join(re.escape(part) for part in pattern.split("{}")), re.DOTALL)


def test_every_error_that_can_be_made_has_exactly_one_entry() -> None:
    without = {
        f"{one.where} {one.error}: {one.text} {sorted({code for code, _ in known_by(one.text)})}"
        for one in texts()
        if one.text is not None and len({code for code, _ in known_by(one.text)}) != 1
    }
    assert without == set(), "write an entry into plugins/hyperflow/errors, or make its patterns plainer"


def test_an_error_whose_text_the_source_does_not_show_says_where_it_comes_from() -> None:
    unseen = {one.place for one in texts() if one.text is None}
    assert unseen - TEXT_FROM_ELSEWHERE.keys() == set()


def test_what_needs_no_entry_is_still_there() -> None:
    places = {one.place for one in made(PACKAGES)}
    assert (TEXT_FROM_ELSEWHERE.keys() | UNSEEN_BY_PEOPLE.keys()) - places == set()
    assert INTERNAL.keys() - error_classes() == set()


def test_no_pattern_knows_nothing() -> None:
    used = {known for one in texts() if one.text is not None for known in known_by(one.text)}
    dead = [(entry.code, pattern) for entry in entries() for pattern in entry.patterns]
    assert [each for each in dead if each not in used] == []


def test_codes_are_unique_and_belong_to_the_area_of_their_file() -> None:
    codes = [entry.code for entry in entries()]
    assert [code for code, count in collections.Counter(codes).items() if count > 1] == []
    strange = [entry.code for area in areas() for entry in area.entries if entry.code.split("-")[1] != area.area]
    assert strange == []
    files = {file.stem.upper() for file in catalogue.FOLDER.glob("*.yaml")}
    assert files == {area.area for area in areas()}


def test_000_is_left_to_what_nobody_has_foreseen() -> None:
    assert [entry.code for entry in entries() if entry.code.endswith("-000")] == []


def test_a_pattern_has_enough_words_of_its_own() -> None:
    patterns = [pattern for entry in entries() for pattern in entry.patterns]
    assert [one for one in patterns if letters_of(one) < LEAST_LETTERS and one not in SHORT] == []
    assert [one for one, count in collections.Counter(patterns).items() if count > 1] == []


def test_every_entry_says_what_to_do_in_whole_sentences() -> None:
    for entry in entries():
        assert entry.patterns, entry.code
        for words in (entry.meaning, entry.cause, entry.what_to_do):
            assert len(words.split()) > 3, f"{entry.code}: {words}"
            assert words.endswith((".", ")", "`")), f"{entry.code}: {words}"


def test_commands_that_an_entry_names_exist() -> None:
    source = (raised.PACKAGE / "cli" / "__main__.py").read_text()
    known = set(re.findall(r'"(\w+)"', source))
    named = {word for entry in entries() for word in re.findall(r"\./hyperflow (\w+)", entry.advice() + entry.cause)}
    assert named, "the entries name commands"
    assert named - known == set()


def test_files_of_ours_that_an_entry_names_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    named = {path for entry in entries() for path in re.findall(r"\bdocs/[\w.-]+\.md|\bREADME\.md", entry.advice())}
    assert named
    assert [path for path in named if not (root / path).is_file()] == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        # What stands around a message, stage and host or a log's prefix, does not hide it.
        ("download on kvm01: esxi1:443: the connection failed after 512 bytes: reset by peer", "HF-EXPORT-013"),
        (
            "[2026-11-24 05:12:01] ERROR - airflow.exceptions.AirflowException: connection kvm01: no SSH session with\n"
            "    10.0.0.5:22 (timed out)",
            "HF-HOST-003",
        ),
        # A message that holds the reason is known by the reason, and by itself where nobody knows that.
        (
            "this run failed (migration of web01): fix: fix on kvm01: no kernel with virtio_pci and virtio_blk; found "
            "3.2; install one in the source VM. Report: kvm01:/o/web01/report.json",
            "HF-FIX-003",
        ),
        ("this run failed (migration of web01): boot: something new. Report: kvm01:/o/report.json", "HF-RUN-004"),
        (
            "convert on kvm01: /o/disk-0.qcow2: No space left on device; make room on the host, then clear the task",
            "HF-HOST-014",
        ),
        (
            "boot on kvm01: the guest's kernel panicked. Its last lines: VFS: Unable to mount root fs | Kernel panic",
            "HF-BOOT-002",
        ),
        ("plan.yaml: vms[0].nmae: found an unknown key, expected one of name (line 4, column 2)", "HF-FILE-001"),
    ],
)
def test_a_message_is_known_whatever_stands_around_it(message: str, code: str) -> None:
    found = find(message)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    "message", ["'NoneType' object has no attribute 'x'", "KeyError: 'disks'", "", "   ", "[Errno 5]"]
)
def test_what_nobody_has_foreseen_is_not_taken_for_something_else(message: str) -> None:
    assert find(message) is None
    assert explain(message, "convert").code == "HF-CONVERT-000"
    assert explain(message, "a task of tomorrow").code == "HF-RUN-000"
    assert "report" in explain(message, "convert").what_to_do


def test_a_long_hostile_message_hangs_nobody() -> None:
    """Patterns are no regular expressions: what a guest wrote into a message cannot make them take for ever."""
    assert find("offset : : found " * 100_000) is None
    known = find("the guest's kernel panicked. Its last lines: " + "found configuration.users.: " * 100_000)
    assert known is not None
    assert known.code == "HF-BOOT-002"


def test_a_code_is_found_however_it_is_written() -> None:
    assert entry_of("hf-host-001 ") is entry_of("HF-HOST-001")
    assert entry_of("HF-HOST-000") is not None
    assert entry_of("HF-HOST-999") is None


def test_the_page_is_made_of_the_catalogue() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m hyperflow.errors.page"
