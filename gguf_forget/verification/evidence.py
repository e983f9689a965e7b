"""All that a verdict on files follows from, as one document: written into report.json, and read back from it.

Nothing but this is looked at by :func:`.file_gates.judge_files`, so whoever has the report can recompute the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.gates import FULL_PRECISION, GateLimits
from gguf_forget.verification.scores import FileScores


@dataclass(frozen=True)
class Attack:
    """One attempt to get the facts back out of a file.

    Attributes:
        kind: which attack, a key of :data:`.attacks.KINDS`.
        name: what exactly was done, in words.
        scores: answers to the attacked questions; None where the attack measures something else.
        figures: what else was measured, plain JSON values.
        problem: why it could not be carried out.
        not_applicable: why it makes no sense for this file.
    """

    kind: str
    name: str
    scores: FileScores | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    not_applicable: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "scores": None if self.scores is None else self.scores.to_json(),
            "figures": dict(self.figures),
            "problem": self.problem,
            "not_applicable": self.not_applicable,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Attack:
        scores = record["scores"]
        if scores is not None and (record["problem"], record["not_applicable"]) != (None, None):
            raise EvaluationError(f"the attack {record['name']!r} has scores, and is said to have none")
        return cls(**{**record, "scores": None if scores is None else FileScores.from_json(scores)})


@dataclass(frozen=True)
class FileEvidence:
    """What was found about one file.

    Attributes:
        label: how reports name it: its type, or where two files have one type, its name.
        name, sha256, bytes: of the file.
        file_type: from its metadata, such as ``Q4_K_M``; "unknown" where that says nothing.
        full_precision: whether its weights are not quantized.
        compared_with: the key of :attr:`Evidence.originals` that it is compared with.
        tensors_changed: tensors whose bytes differ from that original's; None where they cannot be compared.
        scores: None when the file could not be asked; ``problem`` then says why.
    """

    label: str
    name: str
    sha256: str
    bytes: int
    file_type: str
    full_precision: bool
    compared_with: str
    tensors_changed: int | None
    scores: FileScores | None
    problem: str | None = None
    attacks: tuple[Attack, ...] = ()

    def to_json(self) -> dict[str, Any]:
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["scores"] = None if self.scores is None else self.scores.to_json()
        record["attacks"] = [attack.to_json() for attack in self.attacks]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FileEvidence:
        scores = record["scores"]
        if record["full_precision"] != (record["file_type"] in FULL_PRECISION):
            raise EvaluationError(f"{record['name']!r} is {record['file_type']}, and its full precision another")
        return cls(
            **{
                **record,
                "scores": None if scores is None else FileScores.from_json(scores),
                "attacks": tuple(Attack.from_json(attack) for attack in record["attacks"]),
            }
        )


@dataclass(frozen=True)
class Evidence:
    """Several files, the originals they are compared with (one for each file type), and the bounds.

    ``headline``: the forgotten relations that the forget gates look at; None: all that were asked about.
    """

    files: tuple[FileEvidence, ...]
    originals: Mapping[str, FileScores]
    limits: GateLimits
    headline: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [file.to_json() for file in self.files],
            "originals": {kind: scores.to_json() for kind, scores in self.originals.items()},
            "limits": asdict(self.limits),
            "headline": None if self.headline is None else list(self.headline),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Evidence:
        """Read :meth:`to_json` back.

        Raises:
            EvaluationError: it is malformed, or scores do not follow from their items.
        """
        try:
            headline = document["headline"]
            return cls(
                files=tuple(FileEvidence.from_json(record) for record in document["files"]),
                originals={kind: FileScores.from_json(scores) for kind, scores in document["originals"].items()},
                limits=GateLimits(**document["limits"]),
                headline=None if headline is None else tuple(headline),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError("the evidence in the report is malformed", cause=repr(error)) from error
