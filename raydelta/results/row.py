"""One line of the table of results."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

Count = Annotated[int, Field(ge=0, lt=2**53)]


class Row(BaseModel):
    """One line of the table: one method, label budget and seed on one split."""

    method: str
    labels_train: Count
    labels_val: Count  # labels that were looked at to validate; part of what the result cost
    seed: Count
    real: str  # name of the real data set
    domain: Literal["real", "synthetic"] = "real"  # of the images that it was evaluated on
    split: str
    start: str  # where its segmenter starts: scratch, expert (trained on synthetic images) or student
    pretraining: str | None  # of the expert's encoder; None: from scratch, no image but those of the two sets
    device_hours: float  # of one device, all that it builds on included
    miou: float  # percent
    validation: float | None = None  # mIoU on its validation labels, percent; None: it has none, or an older table
    per_class: dict[str, float | None]  # percent; None: the class is absent
    means: dict[str, float] = {}  # mIoU over the classes of a smaller built-in taxonomy: synthia16, synthia13
    images: Count
    pixels: Count | None = None  # labelled to train on, at the size of training; None: all labels, or an older table
    clicks: Count | None = None  # that these cost, see data/price
    stage: str | None = None  # name of its training, and of its directory beside the run's; None: an older table
    confusion: list[list[Count]] | None = None  # pixels, rows truth and columns prediction; None: an older table

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, fields: Any) -> Any:
        """Older tables have no domain, and name splits of the synthetic set ``synthetic test``."""
        if isinstance(fields, dict) and "domain" not in fields and str(fields.get("split")).startswith("synthetic "):
            return fields | {"domain": "synthetic", "split": fields["split"].removeprefix("synthetic ")}
        return fields

    @model_validator(mode="after")
    def _confusion_of_the_classes(self) -> Self:
        if self.confusion is not None and {len(line) for line in self.confusion} | {len(self.confusion)} != {
            len(self.per_class)
        }:
            raise ValueError(f"confusion: not {len(self.per_class)} rows and columns, one for each class")
        return self

    @property
    def images_of(self) -> str:
        """Domain and split in words."""
        return name_split(self.domain, self.split)


def name_split(domain: str, split: str) -> str:
    """A split in words: its domain is named where it is not photographs."""
    return split if domain == "real" else f"{domain} {split}"
