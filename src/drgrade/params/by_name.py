"""A block of ``params.yaml`` whose model depends on the name of a plugin, such as an experiment's grader."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from drgrade.errors import UserError
from drgrade.plugins import Registry


@dataclass(frozen=True)
class ByName:
    """Annotation of a field: validate with the ``Params`` of the plugin that the block's ``key`` names.

    A union discriminated by ``key`` whose members are looked up on use, so that a new plugin needs only one
    file. A lookup imports the plugin's module.

    Args:
        registry: registry of the plugins.
        key: key of the block that holds the plugin's name, such as ``grader``.
    """

    registry: Registry
    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: self._validated(value, source), handler(source)
        )

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        models = [self.registry.get(name).Params for name in self.registry.names()]
        return {"anyOf": [handler(model.__pydantic_core_schema__) for model in models]}

    def _validated(self, value: Any, base: type[BaseModel]) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get(self.key, base.model_fields[self.key].default)
        try:
            model = self.registry.get(name).Params
        except UserError as error:
            raise ValueError(f"{self.key}: {error}") from None
        return model.model_validate(value)
