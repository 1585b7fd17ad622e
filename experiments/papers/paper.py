"""What a paper's file says: its rows, numbers, claims and scales."""

from dataclasses import dataclass, field

from experiments.configuration.files import Node


@dataclass(frozen=True)
class Row:
    """One line of a paper's comparison.

    Attributes:
        title: What it is called in tables.
        experiment: The shipped experiment that trains it.
        changes: Values of it that this row changes, nested.
    """

    title: str
    experiment: str
    changes: Node = field(default_factory=dict)


@dataclass(frozen=True)
class Number:
    """One score that the paper gives.

    Attributes:
        row: Which run it is of.
        section: Where it stands.
        after: How long was trained, in the paper's words.
        value: The score; None = the paper names the run and gives no score.
        images: The clock it was taken at, where the run goes on behind it; None = the end of the run.
    """

    row: str
    section: str
    after: str
    value: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Claim:
    """One row is said to be better than another.

    Attributes:
        better: The better row.
        worse: The other one.
        source: Where the paper says so, and how; "ours" = it does not, and it is worth knowing.
        images: The clock at which they are compared, for a row that goes on behind it; None = the ends of the runs.
    """

    better: str
    worse: str
    source: str
    images: int | None = None


@dataclass(frozen=True)
class Scale:
    """How much of the paper is carried out.

    Attributes:
        about: What is less than in the paper, for the report; empty = nothing.
        seeds: Each row is trained once with each.
        changes: Values of every row's experiment that are changed, nested.
        of_rows: The same of single rows.
        without: Rows that are left out.
    """

    about: str
    seeds: tuple[int, ...]
    changes: Node = field(default_factory=dict)
    of_rows: dict[str, Node] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper's file in ``configs/papers``: everything that it reports.

    Attributes:
        name: The file's name. ``configs/suites`` has a suite of this name, ``experiments.papers`` a module.
        title: Author, title, place and year.
        images: Images of its data.
        ours: What the paper leaves open and we chose, at every scale.
        score: The score of its numbers, lower is better.
        stand_in: What rows are compared by where that cannot be taken.
        columns: Titles of the scores that are shown, by name; what is shown beside them explains, or is a variant.
        variant: A score that its numbers may be instead, if the paper is not clear; None = it is.
        rows: What it compares, by name.
        numbers: Its scores.
        claims: Which rows are said to be better than which.
        scales: How it can be carried out, by name.
    """

    name: str
    title: str
    images: int
    ours: str
    score: str
    stand_in: str
    columns: dict[str, str]
    rows: dict[str, Row]
    numbers: tuple[Number, ...]
    claims: tuple[Claim, ...]
    scales: dict[str, Scale]
    variant: str | None = None

    def __post_init__(self) -> None:
        """Refuse names of rows and scores that do not exist."""
        named = [number.row for number in self.numbers]
        named += [name for claim in self.claims for name in (claim.better, claim.worse)]
        named += [name for scale in self.scales.values() for name in (*scale.of_rows, *scale.without)]
        if unknown := sorted(set(named) - set(self.rows)):
            raise ValueError(f"rows: there is no {', '.join(unknown)}")
        scores = {self.score, self.stand_in, *([self.variant] if self.variant else [])}
        if unknown := sorted(scores - set(self.columns)):
            raise ValueError(f"columns: there is no {', '.join(unknown)}")
