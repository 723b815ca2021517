"""What all blocks of this package share: how they show themselves in JSON, and that they never spill secrets."""

from abc import ABC
from copy import deepcopy
from typing import Any, ClassVar, Literal, TypeVar

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockDocument
from pydantic import ConfigDict, HttpUrl, SecretStr, SerializationInfo, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import GenerateJsonSchema

from prefect_environments.core.errors import SecretError

DOCUMENTATION_URL = HttpUrl("https://github.com/prefect-environments/prefect-environments")
LOGO_URL = HttpUrl("https://raw.githubusercontent.com/prefect-environments/prefect-environments/main/docs/logo.png")

_schemas: dict[tuple[object, ...], tuple[object, dict[str, Any]]] = {}
"""JSON schemas by class and options, each with pydantic's schema of the class that it was made from."""

_Text = TypeVar("_Text", str, SecretStr)


class EnvironmentsBlock(Block, ABC):
    """Base of the blocks of this package.

    A saved block becomes `{"$ref": {"block_document_id": …}}` in JSON, so that a flow run that took it as a parameter
    stores where it is, not a copy with masked secrets that a retry could not use.
    """

    # Pydantic would repeat a refused value, such as an address with a password in it, in its error.
    model_config: ClassVar[ConfigDict] = ConfigDict(hide_input_in_errors=True)

    @classmethod
    def model_json_schema(  # type: ignore[override]  # as Prefect has it, without pydantic's newest option
        cls,
        by_alias: bool = True,
        ref_template: str = "#/definitions/{model}",
        schema_generator: type[GenerateJsonSchema] = GenerateJsonSchema,
        mode: Literal["validation", "serialization"] = "validation",
    ) -> dict[str, Any]:
        """Prefect's, made once for a class: to save a block Prefect asks for it dozens of times, and each time for the
        schemas of all blocks that may be inside it, which took seconds for a workspace."""
        asked = (cls, by_alias, ref_template, schema_generator, mode)
        made_from, schema = _schemas.get(asked, (None, {}))
        if made_from is not cls.__pydantic_core_schema__:  # it is another one after `model_rebuild`
            schema = super().model_json_schema(by_alias, ref_template, schema_generator, mode)
            _schemas[asked] = cls.__pydantic_core_schema__, schema
        return deepcopy(schema)

    @model_serializer(mode="wrap")
    def ser_model(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        """Prefect's own serializer, but for saved blocks in JSON. Prefect itself always gives a context."""
        if info.mode == "json" and info.context is None and self._block_document_id is not None:
            return {"$ref": {"block_document_id": str(self._block_document_id)}}
        return super().ser_model(handler, info)

    def _to_block_document(self, *args: Any, **kwargs: Any) -> BlockDocument:
        # Every way of saving comes through here. Prefect stores a nested block that has no document of its own
        # as a copy inside this one, secrets included, where changing a password doesn't reach it.
        for name in type(self).model_fields:
            nested = getattr(self, name)
            if isinstance(nested, Block) and nested._block_document_id is None and holds_secret(nested):
                raise SecretError(
                    f"{name} of this {self.get_block_type_name()} holds a secret and is not saved: save it first, as "
                    f'in {name}.save("my-{nested.get_block_type_slug()}"), so that its secret stays in its own block'
                )
        return super()._to_block_document(*args, **kwargs)


def given(text: _Text | None) -> _Text | None:
    """`None` for a text without content: the form in the UI has no other way to leave one out."""
    plain = text.get_secret_value() if isinstance(text, SecretStr) else text
    return text if plain and plain.strip() else None


def holds_secret(block: Block) -> bool:
    """Whether a secret field of the block, or of a block inside it, is filled."""
    values = [getattr(block, name) for name in type(block).model_fields]
    return any(isinstance(v, SecretStr) or (isinstance(v, Block) and holds_secret(v)) for v in values)
