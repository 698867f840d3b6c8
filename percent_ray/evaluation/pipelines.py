"""stub"""

from typing import Any

from percent_ray.recipe.section import Section


class PipelineRow(Section):
    pipeline: str
    lora: str = ""


class PipelineSource:
    def __init__(self, row: PipelineRow, *, device: Any) -> None:
        raise ValueError("stub")
