"""The notifier that a plan names by its class path: whether it may be imported, and what its arguments may be."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import jinja2
from airflow.configuration import conf
from airflow.sdk import BaseNotifier

from hyperflow.manifest.faults import did_you_mean, show
from hyperflow.notifications.message import Message
from hyperflow.plans.notices import ALLOWED, Wrong, is_allowed, not_allowed

# What is filled in where a notifier has such an argument and the plan says nothing: a mail needs only who gets it.
FILLED = {
    "subject": "{{ hyperflow.subject }}",
    "title": "{{ hyperflow.subject }}",
    "summary": "{{ hyperflow.subject }}",
    "text": "{{ hyperflow.text }}",
    "message": "{{ hyperflow.text }}",
    "body": "{{ hyperflow.text }}",
    "html_content": "{{ hyperflow.html }}",
}
# What templates know of a run, beside the message. The rest of Airflow's context, such as the task, connections,
# variables and macros, is how a plan could have secrets sent.
TEMPLATES_KNOW = ("run_id", "ds", "ts", "logical_date", "params")
SAMPLE = Message(event="failed", plan="plan", name="vm", outcome="failed", link="/", codes=("HF-RUN-000",))
MESSAGE_HAS = (*(one.name for one in fields(Message)), "subject", "text", "html")
LEFT_TO = {"html_content": "template"}  # not filled in where the plan sets that argument


class UnusableNotifier(Exception):
    """A plan's notifier cannot be made."""


def allowed_notifiers() -> tuple[str, ...]:
    """Airflow's setting ``[hyperflow] notifiers``: class paths, and packages with a dot at their end."""
    listed = conf.get("hyperflow", "notifiers", fallback=ALLOWED)
    return tuple(one.strip() for one in listed.split(",") if one.strip())


def make_notifier(path: str, arguments: Mapping[str, Any]) -> BaseNotifier:
    """Import the class of a notifier, if that is allowed, and make one.

    :raises UnusableNotifier: it is not allowed, is not there, is no notifier, or refuses the arguments
    """
    if not is_allowed(path, allowed_notifiers()):
        raise UnusableNotifier(
            f"notifier: found {path}, expected a class that [hyperflow] notifiers in Airflow's configuration allows"
        )
    kind = _import(path)
    try:
        return kind(**arguments_for(kind, arguments))
    except Exception as fault:
        raise UnusableNotifier(f"{path} refuses its arguments: {fault}") from fault


def judge_notifier(path: str, arguments: Mapping[str, Any], allowed: Sequence[str]) -> list[Wrong]:
    """Say everything that is wrong with a notifier and its arguments, with places in the notice.

    Imports the class if it is allowed, and makes one to see whether it takes the arguments.
    """
    if not is_allowed(path, allowed):
        return [not_allowed(path, allowed)]
    try:
        kind = _import(path)
    except UnusableNotifier as fault:
        return [(("notifier",), f"{show(path)}: {fault}", "the class of a notifier that Airflow can import")]
    known, given = parameters(kind), arguments_for(kind, arguments)
    wrong: list[Wrong] = [
        (("arguments", name), f"an argument that {kind.__name__} has not", did_you_mean(name, sorted(known)))
        for name in arguments
        if name not in known
    ]
    missing = [name for name, one in known.items() if one.default is inspect.Parameter.empty and name not in given]
    wrong += [(("arguments",), f"no {name}", f"a value for it, which {kind.__name__} needs") for name in missing]
    wrong += _broken_templates(kind, arguments)
    if not wrong:
        try:
            kind(**given)
        except Exception as fault:  # noqa: BLE001 - whatever a constructor says of its arguments is what is wrong with them
            wrong.append((("arguments",), f"what {kind.__name__} refuses ({fault})", "arguments that it takes"))
    return wrong


def arguments_for(kind: type[BaseNotifier], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give a notifier's arguments: the plan's, and the message where the class has a place for it."""
    known = parameters(kind)
    more = {
        name: template
        for name, template in FILLED.items()
        if name in known and name in kind.template_fields and LEFT_TO.get(name) not in arguments
    }
    return {**more, **arguments}


def parameters(kind: type[BaseNotifier]) -> dict[str, inspect.Parameter]:
    """List the arguments that a notifier's class takes, those that it hands on to the classes below it included."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        if "__init__" not in vars(each):
            continue
        if each is BaseNotifier:
            break
        own = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
        for one in own:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                found.setdefault(one.name, one)
        if not any(one.kind == one.VAR_KEYWORD for one in own):
            break
    return {name: one for name, one in found.items() if name != "context"}


def _import(path: str) -> type[BaseNotifier]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as fault:
        raise UnusableNotifier(f"Airflow has no module {fault.name}") from fault
    except AttributeError as fault:
        raise UnusableNotifier(f"{module} has no class {name}") from fault
    except Exception as fault:
        raise UnusableNotifier(f"its module cannot be imported ({type(fault).__name__}: {fault})") from fault
    if not (isinstance(found, type) and issubclass(found, BaseNotifier)):
        raise UnusableNotifier("it is no subclass of Airflow's BaseNotifier")
    return found


def _broken_templates(kind: type[BaseNotifier], arguments: Mapping[str, Any]) -> list[Wrong]:
    """Render what will be rendered, of a message as there may be, strictly: at its time nobody would see the fault."""
    environment = BaseNotifier().get_template_env()
    environment.undefined = jinja2.StrictUndefined
    known = {**dict.fromkeys(TEMPLATES_KNOW, ""), "params": {}, "logical_date": datetime.now(UTC), "hyperflow": SAMPLE}
    wrong: list[Wrong] = []
    for name, value in arguments.items():
        for text in _texts(value) if name in kind.template_fields else ():
            try:
                environment.from_string(text).render(known)
            except Exception as fault:  # noqa: BLE001 - a template may do anything wrong, also divide by zero
                expected = f"a template of {', '.join(sorted(known))}; hyperflow has {', '.join(MESSAGE_HAS)}"
                wrong.append((("arguments", name), f"a template that cannot be rendered ({fault})", expected))
    return wrong


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]
