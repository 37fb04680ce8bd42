"""A slug is a safe name, stable, and never another VM's."""

import re

import pytest
from hyperflow.plans.slug import SLUG_LIMIT, Selector, slugs
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(min_size=1, max_size=120) | st.text(alphabet="aAbB1./ -_ä%'\"$;", min_size=1, max_size=8)
SELECTORS = st.builds(Selector, st.sampled_from(["name", "inventory_path", "moref"]), NAMES)


def one(value, kind="name"):
    return slugs([Selector(kind, value)])[0]


@given(st.lists(SELECTORS, unique=True, max_size=20))
def test_slugs_are_safe_and_differ(selectors):
    made = slugs(selectors)
    assert len({slug.casefold() for slug in made}) == len(selectors)
    for slug in made:
        assert re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", slug)
        assert len(slug) <= SLUG_LIMIT


@given(st.lists(SELECTORS, unique=True, max_size=10))
def test_a_slug_does_not_depend_on_the_order(selectors):
    forward = dict(zip(selectors, slugs(selectors), strict=True))
    assert dict(zip(selectors[::-1], slugs(selectors[::-1]), strict=True)) == forward


@pytest.mark.parametrize("name", ["web01", "Web_01", "db-1.example.org", "0", "_x"])
def test_a_name_that_is_safe_already_is_kept(name):
    assert one(name) == name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("web 01", "web-01"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("Größe", "Groe"),
        ("日本", "vm"),
        ("a'b\"c;d", "a-b-c-d"),
        ("..", "vm"),
    ],
)
def test_a_changed_name_keeps_what_it_can_and_gets_a_digest(name, stem):
    assert re.fullmatch(re.escape(stem) + "-[0-9a-f]{8}", one(name))


def test_a_long_name_is_cut_and_gets_a_digest():
    assert len(one("a" * 200)) == SLUG_LIMIT
    assert one("a" * 200) != one("a" * 201)


def test_a_path_gives_its_last_part():
    assert one("/DC0/vm/folder/web01", "inventory_path") == "web01"


def test_vms_that_share_a_name_all_get_a_digest_whatever_the_case():
    made = slugs(
        [
            Selector("name", "web01"),
            Selector("inventory_path", "/DC0/vm/a/WEB01"),
            Selector("inventory_path", "/DC0/vm/b/web01"),
            Selector("name", "db01"),
        ]
    )
    assert made[3] == "db01"
    assert all(re.fullmatch("web01-[0-9a-f]{8}", slug.lower()) for slug in made[:3])
    assert len(set(made)) == 4


def test_a_name_that_looks_like_anothers_slug_does_not_take_it():
    disguised = one("web 01")
    made = slugs([Selector("name", "web 01"), Selector("name", disguised)])
    assert made[0] != made[1]
