"""Write the table of every configuration key: ``python tools/document.py > docs/configuration.md``."""

import interpreter  # noqa: F401
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fdtrain.config import NETWORKS, Config

HEAD = """# Configuration

One YAML file a run; `--set section.key=value` overrides any key. An unknown key, a wrong type or an impossible
combination is refused before anything starts, and the resolved configuration is saved with the run, credentials in
URLs masked (docs/data.md). Refused too are a key that is given twice, more than 20,000 values with those that aliases
repeat, and types beyond texts, numbers, booleans, lists and sections: a date is a text. This page is made from
`fdtrain/config.py` by `python tools/document.py`.
"""


def document() -> str:
    lines = [HEAD]
    top = {n: field for n, field in Config.model_fields.items() if n != "network" and not _is_section(field)}
    lines += ["## Run\n", *_table(top)]
    for name, field in Config.model_fields.items():
        if name == "network":
            lines.append("\n## network\n\nOne of these, chosen by `name`: docs/networks.md.")
            for title, section in NETWORKS.items():
                lines += [f"\n### {title}\n", *_table(section.model_fields)]
        elif _is_section(field):
            lines += [f"\n## {name}\n", *_table(field.annotation.model_fields)]
    return "\n".join(lines) + "\n"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | default | |", "|---|---|---|"]
    for name, field in fields.items():
        rows.append(f"| `{name}` | {_default(field)} | {_about(field)} |")
    return rows


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "`null`" if field.default is None else f"`{_yaml(field.default)}`"


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def _about(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    about = field.description or ""
    if getattr(field.annotation, "__origin__", None) is not tuple and all(isinstance(c, str | int) for c in choices):
        listed = ", ".join(f"`{_yaml(choice)}`" for choice in choices)
        about = f"{listed}; {about}" if about and listed else listed or about
    return about


if __name__ == "__main__":
    print(document(), end="")
