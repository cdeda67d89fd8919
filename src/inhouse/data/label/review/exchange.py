"""Take a review out as rows of a dataset, and to and from Label Studio's JSON (tasks, annotations, predictions)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from inhouse.core.errors import UserError
from inhouse.data.formulas import guarded
from inhouse.data.label.apply import json_line
from inhouse.data.label.items import text_id
from inhouse.data.label.review.queue import AGREEMENT, NewTask, Queue, Recorded, Task

ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
CONTROL, OBJECT = "label", "text"  # names of the controls in the labelling configuration


class Value(BaseModel):
    """What was chosen, or written."""

    choices: list[str] | None = None
    text: list[str] | str | None = None


class Result(BaseModel):
    """One control's value."""

    type: str = ""
    value: Value = Value()


class Annotation(BaseModel):
    """One person's answer, or a model's prediction."""

    completed_by: int | str | dict[str, Any] | None = None
    reviewer: str | None = None  # ours: Label Studio leaves it aside
    result: list[Result] = Field(default_factory=list)
    was_cancelled: bool = False
    ground_truth: bool = False
    model_version: str | None = None
    score: float | None = None


class StudioTask(BaseModel):
    """One text with what people and models said of it."""

    data: dict[str, Any]
    annotations: list[Annotation] = Field(default_factory=list)
    predictions: list[Annotation] = Field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """What a Label Studio file holds for a queue; `left_out` results are of kinds that a queue does not know."""

    tasks: tuple[NewTask, ...]
    recorded: tuple[Recorded, ...]
    labels: tuple[str, ...]
    left_out: int


def as_lines(queue: Queue, tasks: Sequence[Task]) -> str:
    """The decided texts as JSON lines."""
    return "".join(json_line(row) for row in rows_of(queue, tasks))


def as_csv(queue: Queue, tasks: Sequence[Task]) -> str:
    """The decided texts as CSV, with every column that any has; lists and objects are written as JSON.

    What a spreadsheet would run has an apostrophe before it, which the csv reader takes off.
    """
    rows = list(rows_of(queue, tasks))
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # only what is part of this is quoted inside a cell
    writer.writerow(map(guarded, names))
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue().encode("utf-8", "replace").decode()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return guarded(value)
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | bool) else value


def rows_of(queue: Queue, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """The decided texts: every column they came with, the label decided and who decided it."""
    for task in sorted(tasks, key=lambda task: task.asked.id):
        if task.label is None:
            continue
        columns = {**task.asked.fields, queue.text_column: task.asked.text, queue.label_column: task.label}
        by = "review" if task.decided_by == AGREEMENT else "adjudication"
        yield {**columns, "label_by": by, "label_reviewers": len(task.answers)}


def to_studio(queue: Queue, tasks: Sequence[Task]) -> str:
    """Every text as a Label Studio task; a verdict is the annotation marked as ground truth."""
    found = [_studio(queue, task, number) for number, task in enumerate(sorted(tasks, key=lambda t: t.asked.id), 1)]
    return json.dumps(found, indent=1, ensure_ascii=True) + "\n"


def studio_config(queue: Queue) -> str:
    """The labelling configuration that fits the exported tasks."""
    from xml.sax.saxutils import quoteattr

    shown = f'  <Text name="{OBJECT}" value={quoteattr("$" + queue.text_column)}/>'
    if queue.labels:
        choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in queue.labels)
        control = f'  <Choices name="{CONTROL}" toName="{OBJECT}" choice="single">\n{choices}\n  </Choices>'
    else:
        control = f'  <TextArea name="{CONTROL}" toName="{OBJECT}"/>'
    return f"<View>\n{shown}\n{control}\n</View>\n"


def _studio(queue: Queue, task: Task, number: int) -> dict[str, Any]:
    asked = task.asked
    annotations = [_annotation(queue, who, label, ground_truth=False) for who, label in task.answers]
    if task.label is not None and task.decided_by not in (None, AGREEMENT):
        annotations.append(_annotation(queue, str(task.decided_by), task.label, ground_truth=True))
    predictions = []
    if asked.suggestion is not None:
        said = {"model_version": asked.suggested_by, "score": asked.score}
        known = {name: value for name, value in said.items() if value is not None}
        predictions.append({**known, "result": [_result(queue, asked.suggestion)]})
    data = {**asked.fields, queue.text_column: asked.text}
    if asked.given is not None:
        data[queue.label_column] = asked.given
    return {"id": number, "data": data, "annotations": annotations, "predictions": predictions}


def _annotation(queue: Queue, who: str, label: str, *, ground_truth: bool) -> dict[str, Any]:
    """One answer. Label Studio knows people by address or number and refuses a file that names them otherwise."""
    person: dict[str, Any] = {"reviewer": who}
    if ADDRESS.fullmatch(who):
        person["completed_by"] = {"email": who}
    elif who.isdecimal():
        person["completed_by"] = int(who)
    return {**person, "result": [_result(queue, label)], "ground_truth": ground_truth, "was_cancelled": False}


def _result(queue: Queue, label: str) -> dict[str, Any]:
    kind, value = ("choices", {"choices": [label]}) if queue.labels else ("textarea", {"text": [label]})
    return {"from_name": CONTROL, "to_name": OBJECT, "type": kind, "value": value}


def from_studio(path: Path, queue: Queue) -> Imported:
    """The tasks of a Label Studio export. Raises review.bad_import, review.no_texts.

    An annotation marked as ground truth is a verdict, the others are answers of the people they name; of predictions
    the first is the suggestion. Results of other kinds, of several choices, and cancelled ones are left out.
    """
    read = [_Reading(queue, task) for task in _studio_tasks(path)]
    used = [one for one in read if one.text]
    if not used:
        found = sorted({name for one in read for name in one.task.data})
        raise UserError("review.no_texts", path=path, column=queue.text_column, found=", ".join(found) or "-")
    labels = dict.fromkeys(label for one in used for label in one.choices())
    recorded = tuple(one.recorded() for one in used)
    left_out = sum(one.left_out() for one in used) + len(read) - len(used)
    return Imported(tuple(one.new_task() for one in used), recorded, tuple(labels), left_out)


def _studio_tasks(path: Path) -> list[StudioTask]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(value, list):
            raise ValueError(f"the top is no list but {type(value).__name__}")
        return [StudioTask.model_validate(one) for one in value]
    except FileNotFoundError:
        raise UserError("review.no_file", path=path) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UserError("review.bad_import", path=path, problem=problem) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError("review.bad_import", path=path, problem=error) from None


@dataclass(frozen=True)
class _Reading:
    """One task of a Label Studio file, read for a queue."""

    queue: Queue
    task: StudioTask

    @property
    def text(self) -> str:
        value = self.task.data.get(self.queue.text_column)
        return value.encode(errors="replace").decode() if isinstance(value, str) and value.strip() else ""

    def new_task(self) -> NewTask:
        given = self.task.data.get(self.queue.label_column)
        said = next((one for one in self.task.predictions if _label_of(one)), None)
        return NewTask(
            text_id(self.text), self.text, self.task.data,
            given=given if isinstance(given, str) and given.strip() else None,
            suggestion=_label_of(said) if said else None,
            suggested_by=said.model_version if said else None,
            score=said.score if said else None,
        )  # fmt: skip

    def recorded(self) -> Recorded:
        answers: dict[str, str] = {}
        verdict = None
        for number, one in enumerate(self.task.annotations):
            label, who = _label_of(one), _who(one, number)
            if label and one.ground_truth:
                verdict = (who, label)
            elif label:
                answers[who] = label
        return Recorded(text_id(self.text), tuple(sorted(answers.items())), verdict)

    def choices(self) -> list[str]:
        said = (*self.task.annotations, *self.task.predictions)
        return [label for one in said for result in one.result if result.value.choices and (label := _label_of(one))]

    def left_out(self) -> int:
        return sum(_label_of(one) is None for one in (*self.task.annotations, *self.task.predictions))


def _label_of(one: Annotation) -> str | None:
    """The one label, or the text, that an annotation holds."""
    found: list[str] = []
    for result in one.result:
        texts = result.value.text
        found += result.value.choices or ([texts] if isinstance(texts, str) else texts or [])
    if one.was_cancelled or len(found) != 1:
        return None
    return found[0].strip() or None


def _who(one: Annotation, number: int) -> str:
    """A name for who annotated: exports give a number, an address, or an object that holds both."""
    if one.reviewer:
        return one.reviewer
    who = one.completed_by
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    return str(who) if who not in (None, "") else f"annotator {number + 1}"
