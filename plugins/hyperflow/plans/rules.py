"""A plan's rules that join several fields.

They work on plain data that may have any other fault as well, so that one run lists every fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from hyperflow.manifest.faults import Location, did_you_mean, show
from hyperflow.plans import bandwidth, notices
from hyperflow.plans.cutover import COLD, LIVE_COPY, Cutover
from hyperflow.plans.library import Library, merged_profile
from hyperflow.plans.profile import ProfileSettings
from hyperflow.plans.reading import PlacedFault, fault
from hyperflow.plans.settings import HostSettings
from hyperflow.plans.slug import Selector, slugs

KINDS = ("name", "inventory_path", "moref")

Entries = Mapping[int, dict[str, Any]]
"""The VMs of a plan that are objects, by their index."""


def faults(plan: Any, library: Library, notifiers: notices.Judge | None = None) -> list[PlacedFault]:
    """Find broken rules in a plan file's plain data.

    :param library: where the profiles are; those the plan names are read into it
    :param notifiers: who tells whether notifiers can be used
    """
    if not isinstance(plan, dict):
        return []
    vms = plan.get("vms")
    entries = {index: vm for index, vm in enumerate(vms) if isinstance(vm, dict)} if isinstance(vms, list) else {}
    return [
        *_selectors(entries, _inner(plan, "vcenter").get("datacenter")),
        *_domain_names(entries, _inner(plan, "host").get("connection")),
        *_host(plan, entries),
        *_profiles(plan, entries, library),
        *_bandwidth(plan, ()),
        *(each for index, vm in entries.items() for each in _bandwidth(vm, ("vms", index))),
        *_cutovers(plan, entries),
        *_of_no_use(plan, entries),
        *_health(plan, entries),
        *_people(plan),
        *(fault(*wrong) for wrong in notices.broken_rules(plan, notifiers)),
    ]


def _selectors(entries: Entries, datacenter: Any) -> Iterator[PlacedFault]:
    first: dict[tuple[str, Any], int] = {}
    for index, vm in entries.items():
        kinds = [kind for kind in KINDS if kind in vm]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            yield fault(("vms", index), found, f"exactly one of {', '.join(KINDS)}")
            continue
        value = vm[kinds[0]]
        if not isinstance(value, str):
            continue
        key = (kinds[0], value)
        same = first.get(key, first.get(other_name(kinds[0], value, datacenter)))
        if same is not None:
            yield fault(("vms", index, kinds[0]), f"the VM of vms[{same}] again", "each VM once")
        first.setdefault(key, index)
        if kinds[0] == "inventory_path":
            first.setdefault(("path to", value.rpartition("/")[2]), index)


def other_name(kind: str, value: str, datacenter: Any) -> tuple[str, str]:
    """Tell how a plan may name the same VM otherwise.

    A VM that is meant by its name is the only one of that name, in the vCenter or in the plan's datacenter; so a path
    that ends in the name is the path to it.

    :param datacenter: the plan's, None for all
    """
    if kind == "name":
        return "path to", value
    within = datacenter is None or value.startswith(f"/{datacenter}/")
    return ("name", value.rpartition("/")[2]) if kind == "inventory_path" and within else (kind, value)


def names_one(vm: dict[str, Any]) -> bool:
    """Tell whether an entry says which VM it is."""
    kinds = [kind for kind in KINDS if kind in vm]
    return len(kinds) == 1 and isinstance(vm[kinds[0]], str)


def selector_of(vm: dict[str, Any]) -> Selector:
    """Tell which VM an entry is that says it."""
    (kind,) = [kind for kind in KINDS if kind in vm]
    return Selector(kind, vm[kind])  # type: ignore[arg-type]


def _domain_names(entries: Entries, connection: Any) -> Iterator[PlacedFault]:
    """Find domains of one name on one host; two slugs differ, so one of the two has its name written.

    :param connection: of the plan's host
    """
    named = [index for index, vm in entries.items() if names_one(vm)]
    implied = dict(zip(named, slugs([selector_of(entries[index]) for index in named]), strict=True))
    first: dict[tuple[str, str], int] = {}
    for index, vm in entries.items():
        written = _inner(vm, "target").get("name")
        name = implied.get(index) if written is None else written
        if not isinstance(name, str):
            continue
        key = (str(_inner(vm, "host").get("connection", connection)), name)
        other = first.setdefault(key, index)
        if other != index and (written is not None or "name" in _inner(entries[other], "target")):
            found = "" if written is not None else f"nothing, and so the slug {show(name)}, "
            expected = "a name for each domain of a host"
            yield fault(("vms", index, "target", "name"), f"{found}the domain name of vms[{other}] again", expected)


def _host(plan: dict[str, Any], entries: Entries) -> Iterator[PlacedFault]:
    for key in HostSettings.model_fields:
        if key in _inner(plan, "host"):
            continue
        without = [index for index, vm in entries.items() if key not in _inner(vm, "host")]
        if len(without) == len(entries):
            yield fault(("host", key), "nothing", "a value, here or at each VM")
            continue
        for index in without:
            yield fault(("vms", index, "host", key), "nothing", "a value, here or at the plan's top")


def _profiles(plan: dict[str, Any], entries: Entries, library: Library) -> Iterator[PlacedFault]:
    if "profile" not in plan and not any("profile" in vm for vm in entries.values()):
        yield fault(("profile",), "nothing", library.known())
        return
    if isinstance(plan.get("profile"), str):
        yield from library.faults(("profile",), plan["profile"])
    for index, vm in entries.items():
        here: Location = ("vms", index)
        if "profile" not in vm and "profile" not in plan:
            yield fault((*here, "profile"), "nothing here and at the plan's top", library.known())
        elif isinstance(vm.get("profile"), str):
            yield from library.faults((*here, "profile"), vm["profile"])
    yield from _contradictions(plan, entries, library)


def _contradictions(plan: dict[str, Any], entries: Entries, library: Library) -> Iterator[PlacedFault]:
    """Find overrides that contradict the profile or each other, each once, where they stand."""
    judged = False  # whether the plan's own profile and overrides were: they are those of most of its VMs
    for index, vm in entries.items():
        own = "profile" in vm or "profile_overrides" in vm
        if judged and not own:
            continue
        judged = judged or not own
        profile = library.profiles.get(str(vm.get("profile", plan.get("profile"))))
        at: Location = ("vms", index, "profile_overrides") if own else ("profile_overrides",)
        try:
            layers = [ProfileSettings.model_validate(layer.get("profile_overrides", {})) for layer in (plan, vm)]
        except ValidationError:
            continue  # the models list what is wrong with them
        if profile is not None:
            for inner, found, expected in merged_profile(profile, *layers).broken_rules():
                yield fault((*at, *inner), found, expected)


def _bandwidth(settings: dict[str, Any], here: Location) -> Iterator[PlacedFault]:
    for inner, found, expected in bandwidth.overlaps(_inner(settings, "limits").get("bandwidth")):
        yield fault((*here, "limits", "bandwidth", *inner), found, expected)


def _inner(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _health(plan: dict[str, Any], entries: Entries) -> Iterator[PlacedFault]:
    """Find ports that would be asked nowhere, because the plan says that no address is asked."""
    common = _inner(_inner(plan, "cutover"), "health")
    for index, vm in entries.items():
        own = _inner(_inner(vm, "cutover"), "health")
        asked = {**common, **own}
        if asked.get("ports") and asked.get("addresses") == []:
            at: Location = ("vms", index) if "ports" in own or "addresses" in own else ()
            found = f"ports {show(asked['ports'])} and no address to ask them on"
            yield fault((*at, "cutover", "health"), found, "addresses as well")


def _of_no_use(plan: dict[str, Any], entries: Entries) -> Iterator[PlacedFault]:
    """Find what only a cold cutover reads, where the strategy is live-copy: nobody would be asked, nothing looked at.

    At the plan's top it may be meant for the VMs that say ``cold``, and a VM that says ``live-copy`` does not make it
    wrong there.
    """
    common = _inner(plan, "cutover")
    strategy = common.get("strategy", LIVE_COPY)
    strategies = {index: _inner(vm, "cutover").get("strategy", strategy) for index, vm in entries.items()}
    judged: list[tuple[Location, dict[str, Any]]] = []
    if strategy == LIVE_COPY and not any(one == COLD for one in strategies.values()):
        judged.append(((), plan))
    judged += [(("vms", index), entries[index]) for index, one in strategies.items() if one == LIVE_COPY]
    for at, layer in judged:
        unread = [key for key in _inner(layer, "cutover") if key in Cutover.model_fields and key != "strategy"]
        if unread:
            found = f"{', '.join(unread)}, which the strategy live-copy does not read"
            yield fault((*at, "cutover"), found, "strategy: cold as well, or none of these keys")


def _cutovers(plan: dict[str, Any], entries: Entries) -> Iterator[PlacedFault]:
    people = _inner(plan, "people")
    for at, layer in (((), plan), *(((("vms", index)), vm) for index, vm in entries.items())):
        by = _inner(_inner(layer, "cutover"), "approval").get("by")
        for place, key in enumerate(by if isinstance(by, list) else []):
            if isinstance(key, str) and key not in people:
                expected = did_you_mean(key, sorted(people)) if people else "a key of people, which the plan has not"
                yield fault((*at, "cutover", "approval", "by", place), show(key), expected)


def _people(plan: dict[str, Any]) -> Iterator[PlacedFault]:
    first: dict[str, str] = {}
    for key, person in _inner(plan, "people").items():
        user = person.get("id", key) if isinstance(person, dict) else key
        if not isinstance(user, str):
            continue
        if user in first:
            place = ("people", key, "id") if isinstance(person, dict) and "id" in person else ("people", key)
            yield fault(place, f"{show(user)}, the id of people.{first[user]} again", "a user of Airflow for each")
        first.setdefault(user, key)
