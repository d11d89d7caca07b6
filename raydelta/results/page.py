"""What a report page shows, as plain data: ``sections`` and ``gallery`` fill it, the template reads it."""

from dataclasses import dataclass, field

from raydelta.results.charts import Chart
from raydelta.training.curve import Metrics


@dataclass(frozen=True)
class Line:
    """One line of a table; the first cell is its name."""

    cells: list[str]
    mark: str = ""  # a CSS class: recommended, reference, best
    group: str = ""  # the heading above it; lines of one group follow each other


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    caption: str
    columns: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Choice:
    """A line of the results that the reader can choose, and what the charts are told then."""

    value: str
    signals: dict[str, str]
    chosen: bool
    confusions: list[str]  # in words, the largest first


@dataclass(frozen=True)
class TrainingCurve:
    """One training with its curve."""

    id: str  # its kind, a slash, and what tells it from the others of its kind
    label: str
    reports: list[Metrics]


@dataclass(frozen=True)
class Reading:
    """What one model makes of a photograph."""

    miou: float  # percent, over the classes in its truth or prediction
    worst: str  # the class in its truth with the lowest IoU
    worst_iou: float
    views: dict[str, str]  # translated (where the model translates), prediction, error → data URI


@dataclass(frozen=True)
class Picture:
    """A test photograph, its truth, and what every model of the gallery makes of it."""

    id: str
    sequence: str
    real: str  # data URI
    truth: str  # data URI
    readings: list[Reading]


@dataclass(frozen=True)
class Gallery:
    """Pictures and the colours of the classes in them."""

    models: list[str]  # their names, in the order of every picture's readings
    pictures: list[Picture]
    colours: dict[str, tuple[int, int, int]]
    size: tuple[int, int]  # width and height of every view
    of: int  # images that there are


@dataclass
class Page:
    """What the template shows; whatever is empty is left out."""

    title: str
    lead: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)  # one for each family: premise, recommended row
    cautions: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what is not shown, why, and which command brings it
    tables: list[Grid] = field(default_factory=list)  # the main split first
    joint: bool = False  # whether joint training is among their rows, in orange in the charts
    choices: list[Choice] = field(default_factory=list)
    advice: list[tuple[str, str]] = field(default_factory=list)
    no_advice: str = ""
    trials: Grid | None = None
    scored: int = 0  # trials with a validation mIoU
    no_importance: str = ""
    trainings: list[TrainingCurve] = field(default_factory=list)
    chosen_training: str = ""  # its id
    training_table: Grid | None = None
    class_table: Grid | None = None
    class_leads: Grid | None = None
    gallery: Gallery | None = None
    next: list[tuple[str, str]] = field(default_factory=list)  # what for, command
    commands: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)
    curves: list[Metrics] = field(default_factory=list)
