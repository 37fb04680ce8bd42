"""The profiles there are, and what becomes of one with overrides over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperflow.manifest.faults import Location, did_you_mean, place, show
from hyperflow.plans.merge import merge
from hyperflow.plans.plan import PlanError
from hyperflow.plans.profile import Profile, ProfileSettings
from hyperflow.plans.reading import PlacedFault, fault, read, validate

PROJECT_PROFILES = Path(__file__).resolve().parents[3] / "include" / "profiles"
_SUFFIXES = (".yaml", ".yml", ".json")


def load_profile(path: Path) -> Profile:
    """Read a profile file.

    :raises PlanError: with every fault
    """
    document = read(path)
    profile, faults = validate(Profile, document)
    if profile is not None:
        faults = [fault(at, found, expected) for at, found, expected in profile.broken_rules()]
        if profile.name != path.stem:
            faults.append(fault(("name",), show(profile.name), f"the file's name, {show(path.stem)}"))
    if faults or profile is None:
        raise PlanError(str(path), place(faults, document.positions))
    return profile


def project_profile(name: str) -> Profile:
    """Find a profile of the project by its name.

    :raises PlanError: when there is none, or it is faulty
    """
    library = Library([PROJECT_PROFILES])
    faults = [each for _, each in library.faults(("profile",), name)]
    if faults:
        raise PlanError("profiles of the project", faults)
    return library.profiles[name]


def merged_profile(profile: Profile, *overrides: ProfileSettings | None) -> ProfileSettings:
    """Lay overrides over a profile, the later over the earlier."""
    layers = [layer.to_document() for layer in (profile, *overrides) if layer is not None]
    merged = merge(*layers)
    return ProfileSettings.model_validate(
        {key: value for key, value in merged.items() if key not in ("name", "description")}
    )


def folders_near(plan: Path) -> list[Path]:
    """List where a plan's profiles are looked for: beside it, beside its folder, in the project."""
    return [plan.parent / "profiles", plan.parent.parent / "profiles", PROJECT_PROFILES]


class Library:
    """The profiles of some folders; where several have a name, the first folder's counts.

    :param folders: where to look; those that are missing are passed over
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.profiles: dict[str, Profile] = {}
        self._files: dict[str, Path] = {}
        self._unread = ""  # the first folder that cannot be read, and why: what it has would count before the others'
        for folder in folders:
            try:
                files = list(folder.iterdir()) if folder.is_dir() else []
            except OSError as error:
                self._unread = self._unread or f"{folder}: {error.strerror or type(error).__name__}"
                continue
            for file in sorted(files, key=lambda path: path.name):
                if file.suffix in _SUFFIXES and not file.name.startswith("."):
                    self._files.setdefault(file.stem, file)

    def known(self) -> str:
        """Say which profiles there are."""
        return f"the name of a profile: {', '.join(sorted(self._files)) or 'there are none'}"

    def faults(self, location: Location, name: str) -> list[PlacedFault]:
        """Read a profile, unless it was read, and give what is wrong with it at the place that names it."""
        if name in self.profiles:
            return []
        if self._unread:
            return [fault(location, self._unread, "a folder of profiles that can be read")]
        if name not in self._files:
            return [fault(location, show(name), did_you_mean(name, sorted(self._files)))]
        try:
            self.profiles[name] = load_profile(self._files[name])
        except PlanError as error:
            return [
                fault(location, f"a faulty profile, {error.source}: {each}", "a profile without faults")
                for each in error.faults
            ]
        return []
