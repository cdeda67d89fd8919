"""The evidence of a release: one record of everything behind its verdict, as JSON and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact
from inhouse.core.gate import Figure, Verdict
from inhouse.core.protocols import Context
from inhouse.release.settings import ReleaseNode

Evidence = dict[str, Any]
Table = tuple[Sequence[str], Iterable[Sequence[Any]]]

SETTINGS = (
    "The settings, those of the command line included, stand in evidence.json under `asked`: those of each stage under "
    "`stages`, those of serving under `release.serve`.  \n"
    "全部设置（含命令行覆盖项）见 evidence.json 的 `asked`：各阶段的在 `stages`，服务的在 `release.serve`。"
)


def gather(
    release: Mapping[str, Any],
    params: ReleaseNode,
    context: Context,
    figures: Mapping[str, Figure],
    verdicts: Iterable[Verdict],
) -> Evidence:
    """Everything behind the verdict, as plain JSON values."""
    records = {role: i.record for role, i in sorted(context.inputs.items())}
    packages = {name: version for record in records.values() for name, version in record.packages.items()}
    # Through JSON, so that a figure that is not finite becomes null and the file stays valid JSON.
    measured = {name: json.loads(figure.model_dump_json()) for name, figure in sorted(figures.items())}
    commits = sorted({record.commit for record in records.values() if record.commit})
    return {
        "release": dict(release),
        "asked": {
            "project": params.project,
            "use": params.declared_use,
            "release": params.model_dump(mode="json"),
            "stages": {role: {"stage": record.stage, "params": record.params} for role, record in records.items()},
        },
        "model": records["model"].facts.get("model", {}),
        "data": _facts(records, "dataset"),
        "sources": _sources(records),
        "training": _facts(records, "tuned") or (_facts(records, "model") if records["model"].stage == "train" else {}),
        "compression": _compression(records["model"]),
        "figures": measured,
        "verdicts": [json.loads(v.model_dump_json()) for v in verdicts],
        "parity": {name: f for name, f in measured.items() if name.startswith("parity.")},
        "licences": list(release["licences"]),
        "artifacts": {role: _identity(record) for role, record in records.items()},
        "packages": dict(sorted(packages.items())),
        "commits": commits,
        "seed": context.seed,
        "reproduce": "inhouse run PROJECT_FILE",
    }


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write evidence.json and evidence.md; both lie below `measured/`, for they hold timings."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evidence, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / "evidence.json").write_text(text + "\n", encoding="utf-8")
    (folder / "evidence.md").write_text(as_markdown(evidence), encoding="utf-8")


def as_markdown(evidence: Evidence) -> str:
    """The evidence as a page, English and Chinese side by side."""
    release = evidence["release"]
    verdict = "PASSED · 通过" if release["passed"] else "FAILED · 未通过"
    title = release["project"] or release["model"]["name"]
    model = release["model"]
    lines = [
        f"# {_cell(title)}: release evidence · 发布证据",
        "",
        f"**Verdict · 结论: {verdict}**  ",
        f"Declared use · 声明用途: `{release['use']}`  ",
        f"Served model · 服务模型: `{model['artifact']}` / `{model['main']}` (sha256 `{model['sha256']}`)",
    ]
    for heading, (columns, rows) in _sections(evidence):
        lines += ["", f"## {heading}", "", *_table(columns, rows)]
    lines += ["", "## Reproduce · 复现", "", "```", evidence["reproduce"], "```", "", SETTINGS, ""]
    return "\n".join(lines)


def _sections(evidence: Evidence) -> Iterable[tuple[str, Table]]:
    yield (
        "Gates · 关卡",
        (
            ("figure · 指标", "rule · 规则", "measured · 实测", "verdict · 结论", "reason · 原因"),
            (
                (
                    v["figure"],
                    v["rule"],
                    _number(v["measured"]),
                    "pass · 通过" if v["passed"] else "FAIL · 未通过",
                    v["reason"],
                )
                for v in evidence["verdicts"]
            ),
        ),
    )
    yield (
        "Figures · 指标",
        (
            ("figure · 指标", "value · 值", "95 % low · 下限", "95 % high · 上限", "n", "unit · 单位"),
            (
                (name, _number(f["value"]), _number(f["low"]), _number(f["high"]), f["n"] or "", f["unit"])
                for name, f in evidence["figures"].items()
            ),
        ),
    )
    facts = ("fact · 事实", "value · 值")
    yield "Model · 模型", (facts, evidence["model"].items())
    yield "Data · 数据", (facts, evidence["data"].items())
    yield "Data sources · 数据来源", (("source · 来源", "fingerprint · 指纹"), evidence["sources"].items())
    yield "Training · 训练", (facts, evidence["training"].items())
    yield "Compression · 压缩", (facts, evidence["compression"].items())
    yield (
        "Licences · 许可证",
        (
            ("subject · 对象", "terms · 条款", "allows · 允许", "read from · 出处", "note · 备注"),
            ((x["subject"], x["spdx"], x["use"], x["source"], x["note"] or "") for x in evidence["licences"]),
        ),
    )
    yield from _origin(evidence)


def _origin(evidence: Evidence) -> Iterable[tuple[str, Table]]:
    stages = evidence["asked"]["stages"]
    yield (
        "What was asked · 请求的设置",
        (("role · 角色", "stage · 阶段", "settings · 设置"), ((r, s["stage"], s["params"]) for r, s in stages.items())),
    )
    yield (
        "Artifacts · 产物",
        (
            ("role · 角色", "id", "file · 文件", "bytes · 字节", "sha256"),
            (
                (role, a["id"], file["path"], file["bytes"], file["sha256"])
                for role, a in evidence["artifacts"].items()
                for file in a["files"]
            ),
        ),
    )
    origin = {"seed · 随机种子": evidence["seed"], "commit · 提交": ", ".join(evidence["commits"]) or "-"}
    yield "Origin · 环境", (("fact · 事实", "value · 值"), (origin | evidence["packages"]).items())


def _facts(records: Mapping[str, Artifact], role: str) -> dict[str, Any]:
    return dict(records[role].facts) if role in records else {}


def _compression(model: Artifact) -> dict[str, Any]:
    """How the served model was compressed: the method's settings, and what was found besides the model's own facts."""
    if model.stage != "compress":
        return {}
    found = {name: told for name, told in model.facts.items() if name not in ("model", "parity")}
    return {**model.params["method"], **found}


def _sources(records: Mapping[str, Artifact]) -> dict[str, str]:
    """The fingerprint of every source of every dataset; those besides `dataset` stand below their name."""
    datasets = {role: record for role, record in records.items() if record.kind == "dataset"}
    return {
        name if role == "dataset" else f"{role}.{name}": fingerprint
        for role, record in datasets.items()
        for name, fingerprint in record.external.items()
    }


def _identity(record: Artifact) -> dict[str, Any]:
    keep = {"id", "kind", "recipe", "stage", "stage_version", "node", "inputs", "external", "created", "seed", "commit"}
    return record.model_dump(include=keep) | {"files": [f.model_dump() for f in record.files]}


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(_cell(c) for c in row)} |" for row in rows]
    if not lines:
        return ["none · 无"]
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines]


def _cell(value: Any) -> str:
    """One table cell: a value of a model file or a data set may not break the table or bring HTML into the page."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
