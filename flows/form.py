"""The form that the UI makes of a flow's parameters."""

import inspect
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def ask_in_order(flow: Flow[..., Any], *names: str) -> None:
    """Let the form ask for all parameters in this order; in Python the flow is called as it was."""
    known = inspect.signature(flow.fn, eval_str=True).parameters
    if set(names) != set(known):
        raise TypeError(f"the form of {flow.name} asks for {sorted(names)}, but the flow takes {sorted(known)}")
    # deploying reads the signature; keywords, as a required parameter may follow an optional one
    order = [known[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
    flow.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    flow.parameters = parameter_schema(flow)


class WithoutNone:
    """Marks an optional parameter (`Annotated[X | None, WithoutNone()]`) whose form has the field of X at once.

    For `X | None` alone it shows two tabs, and None is the one in front.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        (shown,) = (found for found in handler(schema)["anyOf"] if found != {"type": "null"})
        return dict(shown)
