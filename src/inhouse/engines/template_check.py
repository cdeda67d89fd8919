"""Try a model's chat template before anything depends on it: it is a program that a stranger wrote.

Every engine runs it for each request. Here it is parsed, searched for ways into Python (CVE-2024-34359), and rendered
once in a child process with a limit of CPU time, memory and output. The child is this module.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.settings import child_environment

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

LONGEST = 256 * 1024  # the longest published are about 30 KB
CPU_S = 0.3  # a template takes milliseconds
WALL_S = 10.0
MEMORY = 512 * 2**20
MOST_OUTPUT = 2**20
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TURNS: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi", "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "name": "look", "tool_call_id": "c"},
    {"role": "user", "content": "And now?"},
)


def check_template(template: str, name: str) -> None:
    """Raise engines.template_refused, with the reason, for a chat template that must not be run.

    Refused are: attributes that begin with `__`, what jinja's sandbox stops, loops without an end, output beyond
    1 MB, and what is no jinja at all. `name` is the file it came from. A template that refuses our conversation by
    its own rules is in order. One seen before is not tried again.
    """
    if (reason := _reason(template)) is not None:
        raise UserError("engines.template_refused", path=name, reason=reason)


@lru_cache(maxsize=64)
def _reason(template: str) -> str | None:
    if len(template) > LONGEST:
        return f"it is {len(template)} characters long"
    command = (sys.executable, "-P", "-m", "inhouse.engines.template_check")
    try:
        done = subprocess.run(
            command,
            input=template.encode("utf-8", "replace"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_S,
            env=child_environment(offline=True),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it does not come to an end"
    if done.returncode in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL):
        return "it does not come to an end"
    if done.returncode != 0:
        return "it brought the process down that tried it"
    reason: str | None = json.loads(done.stdout)
    return reason


def main() -> int:
    """Try the template on standard input; write the reason against it, or null, as JSON."""
    text = sys.stdin.buffer.read(4 * LONGEST + 1).decode("utf-8", "replace")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # behind the timer, should something hold that up
    environment = sandbox()  # loads jinja, which is not the template's time
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    sys.stdout.write(json.dumps(problem_of(text, environment)))
    return 0


def sandbox() -> Environment:
    """jinja as transformers sets it up for chat templates: the immutable sandbox, and the same functions."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the answer for training; here its body is all that counts."""

        tags = {"generation"}  # noqa: RUF012 - jinja declares it for the instance

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **how: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **how})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: str(form)
    return environment


def problem_of(template: str, environment: Environment) -> str | None:
    """What is wrong with a template, None when nothing is."""
    from jinja2 import TemplateSyntaxError

    try:
        if (named := next(_hidden_names(environment.parse(template)), None)) is not None:
            return f"it reaches for {named[:40]!r}, which belongs to Python and not to a conversation"
        written = environment.from_string(template)
    except TemplateSyntaxError as error:
        return f"it is no jinja template (line {error.lineno})"
    except RecursionError:
        return "it is nested too deeply"
    for turns, tools in ((TURNS[1:2], None), (TURNS, [TOOL])):
        if (problem := _render(written, {"messages": list(turns), "tools": tools})) is not None:
            return problem
    return None


def _hidden_names(tree: nodes.Template) -> Iterator[str]:
    """Names that begin with two underscores, wherever they stand: no conversation has such."""
    from jinja2 import nodes

    for node in tree.find_all((nodes.Getattr, nodes.Const, nodes.Name)):
        named = node.attr if isinstance(node, nodes.Getattr) else getattr(node, "value", getattr(node, "name", ""))
        if isinstance(named, str) and named.startswith("__"):
            yield named


def _render(written: Any, values: dict[str, Any]) -> str | None:
    from jinja2.exceptions import SecurityError

    length = 0
    try:
        for piece in written.generate(**values, **SPECIAL, add_generation_prompt=True):
            length += len(piece)
            if length > MOST_OUTPUT:
                return f"it writes more than {MOST_OUTPUT // 2**20} MB for a short conversation"
    except SecurityError:
        return "it tries what jinja's sandbox forbids"
    except (MemoryError, OverflowError):
        return "it needs more memory than a conversation can"
    except RecursionError:
        return "it calls itself without an end"
    except Exception:  # noqa: BLE001 - whatever a stranger's program raises: our conversation may not suit it
        return None
    return None


if __name__ == "__main__":
    sys.exit(main())
