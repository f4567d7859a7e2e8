"""Write the table of every configuration key: ``python tools/document.py > docs/configuration.md``."""

from typing import Annotated, Any, Literal, get_args, get_origin

import interpreter  # noqa: F401
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fdtrain.config import NETWORKS, Config, OneOf, OwnNetworkConfig

HEAD = """# Configuration

After this page you can set every key of a run. A run has one YAML file, or several, `--config configs/digits.yaml
configs/baselines/edm.yaml`, each laid over those before it key by key; `--set section.key=value` overrides any key.
Unknown or repeated keys, wrong types and impossible combinations are refused before anything starts. The resolved
configuration is saved with the run, credentials in URLs masked (docs/data.md). `no`, `010`, `1:30` and dates are texts,
as in YAML 1.2, and more than 20,000 values are refused. `~` at the beginning of a path is the home folder. Generated
from `fdtrain/config.py` by `python tools/document.py`.
"""


def document() -> str:
    lines = [HEAD]
    top = {n: field for n, field in Config.model_fields.items() if n != "network" and not _section(field)}
    lines += ["## Run\n", *_table(top)]
    for name, field in Config.model_fields.items():
        if name == "network":
            lines.append("\n## network\n\n`name` chooses one of these: docs/networks.md.")
            for title, section in (NETWORKS | {"your own": OwnNetworkConfig}).items():
                lines += [f"\n### {title}\n", *_table(section.model_fields)]
        elif section := _section(field):
            lines += [f"\n## {name}\n", *_table(section.model_fields)]
    return "\n".join(lines) + "\n"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section; None of a single key."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        rows.append(f"| `{name}` | {_default(field)} | {_description(field)} |")
    return rows


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return ""
    if field.default is PydanticUndefined:
        return "required"
    return "`null`" if field.default is None else f"`{_yaml(field.default)}`"


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def _description(field: FieldInfo) -> str:
    listed = ", ".join(f"`{_yaml(choice)}`" for choice in _choices(field))
    return "; ".join(filter(None, (listed, field.description)))


def _choices(field: FieldInfo) -> list[Any]:
    """What a key may be, where that is a list."""
    kinds = [field.annotation, *get_args(field.annotation)]
    tables = [*field.metadata, *(get_args(kind)[1] for kind in kinds if get_origin(kind) is Annotated)]
    named = [name for table in tables if isinstance(table, OneOf) for name in table.table]
    return named or list(get_args(field.annotation) if get_origin(field.annotation) is Literal else ())


if __name__ == "__main__":
    print(document(), end="")
