"""What the vCenter said of a plan's VMs when it was last asked: sizes, folders, hosts, tags.

A plan is read without asking anybody, many times a minute. What waves need to know of the inventory is asked for once
(``./hyperflow wave survey PLAN``) and kept in ``.survey/<plan>.json`` beside the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import ENAMETOOLONG, ENOENT, ENOTDIR
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyperflow.manifest.faults import Fault
from hyperflow.plans.plan import PlanError

FOLDER = ".survey"
SIZE_LIMIT = 8 * 2**20  # bytes
NOT_THERE = (ENOENT, ENOTDIR, ENAMETOOLONG)  # the last of a plan's name, which is told


class SurveyedVm(BaseModel):
    """A VM as the vCenter knew it.

    :param host: name of its ESXi host
    :param used_bytes: what its disks took on the datastores; None where the vCenter did not tell
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    inventory_path: str
    host: str | None
    power_state: str
    tags: list[str] = Field(default_factory=list)
    capacity_bytes: int = Field(ge=0)
    used_bytes: int | None = Field(default=None, ge=0)


class Survey(BaseModel):
    """All VMs of a plan that were found, now or by an earlier survey.

    :param asked: when, ISO 8601 in UTC; None when nobody has asked yet
    :param vms: by slug; of one that is missing now, what an earlier survey knew, if it did
    :param missing: slug -> why a VM was not found
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    asked: str | None = None
    vms: Mapping[str, SurveyedVm] = Field(default_factory=dict)
    missing: Mapping[str, str] = Field(default_factory=dict)


NOTHING = Survey()


def survey_path(plan_file: Path, plan: str) -> Path:
    """Where the survey of a plan lies."""
    return plan_file.parent / FOLDER / f"{plan}.json"


def read_survey(plan_file: Path, plan: str, kept: Path | None = None) -> Survey:
    """Read the survey of a plan; an empty one when nobody has asked yet.

    :param kept: the file, where it is a copy that was kept elsewhere
    :raises PlanError: with one fault: the file cannot be read, or is not what was written there
    """
    path = kept or survey_path(plan_file, plan)
    try:
        state = path.stat()
        if state.st_size <= SIZE_LIMIT:
            return _read(path, state.st_mtime_ns, state.st_size)
        why = f"{state.st_size} bytes"
    except ValidationError:
        why = "damaged"
    except ValueError:  # the plan's name can be no file's, which is told
        return NOTHING
    except OSError as error:
        if error.errno in NOT_THERE:
            return NOTHING
        why = error.strerror or type(error).__name__
    raise PlanError(
        str(plan_file),
        [Fault("survey", f"{path}: {why}", "what was written there: run ./hyperflow wave survey again")],
    )


def write_survey(plan_file: Path, plan: str, survey: Survey) -> Path:
    """Keep a survey beside the plan; its file."""
    path = survey_path(plan_file, plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(survey.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.rename(path)
    return path


def not_found(survey: Survey) -> list[str]:
    """Say of each VM that was not found why, and by what the rules of waves go: a line each."""
    known = "rules go by what an earlier survey knew of it"
    return [
        f"{slug}: {why}; {known if slug in survey.vms else 'no rule on tag, host or folder fits it'}"
        for slug, why in sorted(survey.missing.items())
    ]


@lru_cache(maxsize=64)
def _read(path: Path, _modified: int, _size: int) -> Survey:
    return Survey.model_validate_json(path.read_bytes())
