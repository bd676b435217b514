"""Each type of property keeps what it declares: for the mapping, the portal, the sandbox, OpenAPI and the manual."""

from __future__ import annotations

from typing import get_args

import pytest
from marshmallow import ValidationError

from bridge.config.portal import misfits
from bridge.crm.properties import Definition
from bridge.intake.fields import TYPES, build_field
from bridge.intake.payload import parse_json_text
from bridge.operations.openapi.shapes import property_shape
from bridge.sandbox.properties import FIELD_TYPES, PropertyDefinition, check
from bridge.settings import Property, PropertyType
from tests import property_types
from tests.unit.test_openapi_truth import judge

TAKEN = [(name, given, text) for name, made in TYPES.items() for given, text in made.takes.items()]
FITTING = [(name, kind) for name, made in TYPES.items() for kind in sorted(made.fits)]
#: How the portal tells of what is no type of its own.
KINDS = {
    "checkbox": Definition("p", "enumeration", options={"true": "Yes", "false": "No"}),
    "external": Definition("p", "enumeration", external=True),
}


def test_every_type_of_the_settings_is_declared() -> None:
    assert set(TYPES) == set(get_args(PropertyType))
    assert all(made.takes and made.refuses and made.fits and made.__doc__ for made in TYPES.values())


@pytest.mark.parametrize("name, given, text", TAKEN)
def test_a_sample_is_read_as_declared_and_fits_the_schema(name: PropertyType, given: str, text: str) -> None:
    how, value = Property("x", type=name), parse_json_text(given)
    assert build_field(how, None, ()).deserialize(value) == text
    assert judge(property_shape("p", how))(value)


@pytest.mark.parametrize("name, given", [(name, given) for name, made in TYPES.items() for given in made.refuses])
def test_a_sample_that_is_declared_unfit_is_refused(name: PropertyType, given: str) -> None:
    with pytest.raises(ValidationError):
        build_field(Property("x", type=name), None, ()).deserialize(parse_json_text(given))


@pytest.mark.parametrize("name, kind", FITTING)
def test_a_type_fits_what_it_declares(name: PropertyType, kind: str) -> None:
    assert list(misfits(Property("x", type=name), KINDS.get(kind, Definition("p", kind)))) == []


@pytest.mark.parametrize("name", TYPES)
def test_a_type_fits_nothing_else_that_is_known(name: PropertyType) -> None:
    for kind in sorted({kind for _, kind in FITTING} - set(TYPES[name].fits)):
        definition = KINDS.get(kind, Definition("p", kind))
        if definition.type not in TYPES[name].fits:  # an enumeration fits each kind of enumeration
            assert [keys for keys, _ in misfits(Property("x", type=name), definition)] == [("type",)], kind


@pytest.mark.parametrize("name, given, text", TAKEN)
def test_the_sandbox_takes_what_comes_of_a_sample(name: PropertyType, given: str, text: str) -> None:
    """As the portal does: the sandbox has its own rules, by the types of the portal."""
    del given
    for kind in TYPES[name].fits & set(FIELD_TYPES):
        assert check(PropertyDefinition("p", kind, options=(text,)), text) is None, kind


def test_the_page_is_current() -> None:
    """`python -m tests.property_types` writes it."""
    assert property_types.PAGE.read_text(encoding="utf-8") == property_types.current()
