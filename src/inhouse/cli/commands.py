"""Every command in lifecycle order: which API function it calls and how its result is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command. `function` is 'module:name' below inhouse.api; `view` a function of cli.views.

    `arguments` are the request's fields that are given by position; the other fields become options.
    `action` names a function of cli.actions for commands that do more than call and show.
    `project` commands take `[PROJECT] [section.key=value]...`. `long` ones run as a job that is watched.
    `fixed` are request values that the command stands for (`inhouse train` is a run until that room).
    """

    path: tuple[str, ...]
    function: str
    view: str
    arguments: tuple[str, ...] = ()
    project: bool = False
    action: str = ""
    long: bool = False
    fixed: tuple[tuple[str, object], ...] = ()

    @property
    def help(self) -> str:
        """Message code of its one-line help."""
        return "cli." + ".".join(self.path)


def _until(room: str, *path: str) -> Command:
    return Command(path, "run:run", "run", project=True, action="run_project", fixed=(("until", room), ("ask", False)))


COMMANDS = (
    Command(("init",), "project:init", "init", arguments=("folder",)),
    Command(("doctor",), "machine:doctor", "doctor"),
    Command(("run",), "run:run", "run", project=True, action="run_project"),
    Command(("models", "list"), "models:list_models", "models"),
    Command(("models", "pull"), "models:pull_model", "model", arguments=("base",), long=True),
    Command(("data", "check"), "data_check:check_data", "checked", project=True, long=True),
    _until("data", "data", "build"),
    Command(("data", "retune"), "retune:retune_data", "retuned", project=True),
    Command(("data", "list"), "data:list_datasets", "datasets"),
    Command(("data", "why"), "data:explain_row", "why", arguments=("row",), project=True),
    Command(("data", "diff"), "data:compare_datasets", "difference", arguments=("first", "second"), action="diff"),
    Command(("data", "tokens"), "tokens:show_tokens", "tokens", project=True),
    Command(("data", "clean"), "unfinished:clean_data", "cleaned"),
    Command(("data", "export"), "data:export_dataset", "exported", arguments=("dataset", "folder")),
    Command(("data", "label"), "label:label_data", "labelled", project=True, long=True),
    Command(("data", "label", "errors"), "label:label_errors", "label_errors", project=True, long=True),
    Command(("data", "review", "add"), "review:review_add", "review_added", arguments=("place",), long=True),
    Command(("data", "review", "next"), "review:review_next", "", action="review_next"),
    Command(("data", "review", "status"), "review:review_status", "review_status"),
    Command(("data", "review", "adjudicate"), "review:review_adjudicate", "", action="review_adjudicate"),
    Command(("data", "review", "export"), "review:review_export", "review_exported", arguments=("file",)),
    Command(("data", "review", "import"), "review:review_import", "review_added", arguments=("file",)),
    _until("train", "train"),
    Command(("train", "plan"), "training:plan_train", "train_plan", project=True, long=True),
    Command(("train", "find-rate"), "training:find_rate", "rate", project=True, long=True),
    Command(("train", "search"), "training:search_rates", "searched", project=True, long=True),
    Command(("train", "clean"), "unfinished:clean_training", "cleaned"),
    Command(("train", "launch"), "launch:launch_training", "launched", project=True),
    Command(("bench", "train"), "compare:bench_train", "bench_train", project=True, long=True),
    Command(("bench", "learning-curve"), "learning_curve:learning_curve", "learning_curve", project=True, long=True),
    Command(("bench", "ablation"), "ablation:ablation", "ablation", project=True, long=True),
    Command(("bench", "long-context"), "long_context:bench_long_context", "long_context", project=True, long=True),
    Command(("bench", "serve"), "bench_serve:bench_serve", "bench_serve", arguments=("deployment",), long=True),
    _until("evaluate", "evaluate"),
    _until("compress", "compress"),
    Command(("release", "list"), "releases:list_releases", "releases"),
    Command(("release", "show"), "releases:show_release", "release", arguments=("release",)),
    Command(("release", "promote"), "releases:promote_release", "promoted", arguments=("release",)),
    Command(("release", "export"), "releases:export_release", "release_exported", arguments=("release", "folder")),
    Command(("release", "rollback"), "deployments:rollback_deployment", "promoted", arguments=("deployment",)),
    Command(("deployments", "list"), "deployments:list_deployments", "deployments"),
    Command(("deployments", "show"), "deployments:show_deployment", "deployment", arguments=("deployment",)),
    Command(("deployments", "split"), "deployments:split_deployment", "promoted", arguments=("deployment", "shares")),
    Command(("deployments", "canary"), "deployments:start_canary", "promoted", arguments=("deployment", "release")),
    Command(
        ("deployments", "shadow"), "deployments:shadow_deployment", "promoted", arguments=("deployment", "release")
    ),
    Command(
        ("deployments", "promote"), "deployments:promote_deployment", "promoted", arguments=("deployment", "release")
    ),
    Command(("deployments", "rollback"), "deployments:rollback_deployment", "promoted", arguments=("deployment",)),
    Command(("deployments", "report"), "deployments:report_deployment", "deployment_report", arguments=("deployment",)),
    Command(("deployments", "rules"), "deployments:change_rules", "deployment", arguments=("deployment", "changes")),
    Command(("deployments", "calibrate"), "calibrations:calibrate_deployment", "calibrated", arguments=("deployment",)),
    Command(("deployments", "remove"), "deployments:remove_deployment", "removed", arguments=("deployment",)),
    Command(("deployments", "history"), "deployments:show_history", "deployment_history", arguments=("deployment",)),
    Command(("serve",), "serving:serve", "served", arguments=("deployment",)),
    Command(("chat",), "serving:open_chat", "", arguments=("message",), action="chat"),
    Command(("keys", "list"), "keys:show_keys", "keys"),
    Command(("keys", "create"), "keys:create_key", "new_key", arguments=("name",)),
    Command(("keys", "rotate"), "keys:renew_key", "new_key", arguments=("name",)),
    Command(("keys", "revoke"), "keys:end_key", "keys", arguments=("name",)),
    Command(("requests", "list"), "requests:list_requests", "requests"),
    Command(("requests", "show"), "requests:show_request", "request", arguments=("id",)),
    Command(("jobs", "list"), "jobs:list_jobs", "jobs"),
    Command(("jobs", "submit"), "run:submit", "job", project=True),
    Command(("jobs", "tail"), "jobs:tail_job", "tailed", arguments=("job",)),
    Command(("jobs", "cancel"), "jobs:cancel_job", "job", arguments=("job",)),
    Command(("lineage",), "lineage:show_lineage", "lineage", arguments=("artifact",)),
    Command(("report",), "reports:show_report", "report", arguments=("artifact",)),
    Command(("schema",), "project:project_schema", "schema"),
    Command(("demo",), "run:demo", "run", arguments=("folder",), action="run_demo"),
)
