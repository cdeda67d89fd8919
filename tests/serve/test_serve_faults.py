"""What happens to requests when releases change, engines die, and the server is told to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from release_workspace import make_model, make_report, run_stage
from serve_endpoint import Endpoint, run_once, workspace_with_two_releases

from inhouse.release.registry import Registry
from inhouse.release.settings import ReleaseNode, ServeParams

pytestmark = pytest.mark.real
LaunchOn = Callable[[Registry, ServeParams], Endpoint]


def ask(endpoint: Endpoint, tokens: int = 4, content: str = "Say hi", timeout: float = 60) -> httpx.Response:
    body = {"model": "desk", "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    headers = {"Authorization": f"Bearer {endpoint.key}", "Cache-Control": "no-store"}
    url = f"{endpoint.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=timeout, trust_env=False)


def ready(endpoint: Endpoint) -> httpx.Response:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    return httpx.get(f"{endpoint.url}/ready", headers=headers, timeout=10, trust_env=False)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def engines_of(endpoint: Endpoint) -> list[psutil.Process]:
    children = psutil.Process(endpoint.process.pid).children(recursive=True)
    return [c for c in children if any("llamacpp_child" in word for word in c.cmdline())]


def engine_of(endpoint: Endpoint) -> psutil.Process:
    return engines_of(endpoint)[0]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Registry:
    """A workspace whose deployment these tests may change."""
    return workspace_with_two_releases(tmp_path_factory.mktemp("switched"), smollm2_gguf)


@pytest.fixture(scope="module")
def server(own: Registry, launch_on: LaunchOn) -> Endpoint:
    return launch_on(own, ServeParams(port=0))


def test_promote_and_rollback_under_load_fail_no_request(server: Endpoint, own: Registry) -> None:
    stop = threading.Event()
    seen: list[tuple[int, str]] = []

    def load() -> None:
        while not stop.is_set():
            answer = ask(server, tokens=2)
            seen.append((answer.status_code, answer.headers.get("x-inhouse-release", "")))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(seen) > 5)
        own.promote("desk", "routing:v2")
        wait_for(lambda: seen[-1][1] == "routing:v2")
        own.rollback("desk")
        wait_for(lambda: seen[-1][1] == "routing:v1")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    wait_for(lambda: len(engines_of(server)) == 1)


def test_release_whose_engine_does_not_load_leaves_the_old_one_serving(server: Endpoint, own: Registry) -> None:
    model = make_model(own.store, b"GGUF" + b"\xff" * 500)
    report = make_report(own.store, {"tuned.accuracy": {"value": 0.8}})
    broken = own.register(
        "routing", run_stage(own.store, ReleaseNode(project="routing"), {"model": model, "report": report})
    )
    own.promote("desk", broken.label)
    wait_for(lambda: own.audit(1)[0].action == "switch_failed")
    assert own.audit(1)[0].detail["kept"] == "routing:v1"
    assert ask(server).headers["x-inhouse-release"] == "routing:v1"
    headers = {"Authorization": f"Bearer {server.key}"}
    numbers = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text
    assert 'inhouse_release_switches_total{result="failed"} 1.0' in numbers
    own.rollback("desk")


def test_plain_requests_survive_the_death_of_the_engine(server: Endpoint) -> None:
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, tokens=60))) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: running(server, 2))
    engine_of(server).send_signal(signal.SIGKILL)
    wait_for(lambda: ready(server).status_code == 503)
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200, 200]
    assert ready(server).status_code == 200


def metrics(endpoint: Endpoint) -> str:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    return httpx.get(f"{endpoint.url}/metrics", headers=headers, trust_env=False).text


def running(endpoint: Endpoint, requests: int) -> bool:
    return re.search(rf"inhouse_num_requests_running\{{.*\}} {requests}\.0", metrics(endpoint)) is not None


def test_stream_cut_by_the_death_of_the_engine_ends_with_an_error_event(server: Endpoint) -> None:
    body = {"model": "desk", "messages": [{"role": "user", "content": "Count"}], "max_tokens": 400, "stream": True}
    headers = {"Authorization": f"Bearer {server.key}"}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream(
        "POST", url, json=body | {"temperature": 1.5}, headers=headers, timeout=60, trust_env=False
    ) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        engine_of(server).send_signal(signal.SIGKILL)
        last = [line for line in lines if line][-1]
    assert first.startswith('data: {"id"')
    assert '"error"' in last and '"engine_unavailable"' in last
    wait_for(lambda: ready(server).status_code == 200)


def test_looping_chat_template_is_ended_and_the_server_goes_on(
    tmp_path: Path, smollm2_gguf: Path, launch_on: LaunchOn
) -> None:
    weights = smollm2_gguf.read_bytes()
    begin = weights.index(b"{% for message in messages %}")
    length = int.from_bytes(weights[begin - 8 : begin], "little")
    loop = "{% for x in range(9999) %}" * 4 + "{% endfor %}" * 4
    template = (
        "{% for m in messages %}{% if 'LOOP' in m['content'] %}" + loop + "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    assert len(template) <= length
    hostile = tmp_path / "hostile.gguf"
    hostile.write_bytes(weights[:begin] + template.encode().ljust(length) + weights[begin + length :])
    registry = workspace_with_two_releases(tmp_path / "hostile", hostile)
    server = launch_on(registry, ServeParams(port=0, first_token_s=2.0))
    began = time.monotonic()
    assert ask(server, content="LOOP").status_code == 504
    assert time.monotonic() - began < 10
    assert ask(server).status_code == 200
    assert server.stop() == 0


def test_deadline_ends_a_request(own: Registry, launch_on: LaunchOn) -> None:
    server = launch_on(own, ServeParams(port=0, deadline_s=0.3))
    answer = ask(server, tokens=450, content="Write a very long story")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    # SIGTERM while a request runs: it is finished (here: by its deadline), then the exit code is 0.
    assert server.stop() == 0


@pytest.mark.parametrize("all_are_told", [False, True], ids=["the server alone", "its engine too, as systemd does"])
def test_sigterm_lets_a_running_request_finish(own: Registry, launch_on: LaunchOn, all_are_told: bool) -> None:
    server = launch_on(own, ServeParams(port=0))
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, tokens=40, content="Tell a story")))
    thread.start()
    wait_for(lambda: running(server, 1))
    children = psutil.Process(server.process.pid).children(recursive=True)
    for child in children if all_are_told else ():
        child.terminate()
    time.sleep(0.2)
    assert all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert server.stop() == 0
    thread.join()
    assert answers[0].status_code == 200
    assert not any(child.is_running() for child in children)


def test_server_that_is_killed_takes_its_engine_with_it(own: Registry, launch_on: LaunchOn) -> None:
    server = launch_on(own, ServeParams(port=0))
    engine = engine_of(server)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_port_in_use_is_said_before_anything_is_loaded(own: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = run_once(own, ServeParams(port=taken.getsockname()[1]))
    assert code == 2 and said["error"]["code"] == "serve.port_in_use"
    assert "--port" in said["error"]["message"]


def test_unknown_deployment_is_said(tmp_path: Path) -> None:
    from inhouse.core.store import Store
    from inhouse.release.registry import open_registry

    store = Store(tmp_path / "empty")
    code, said = run_once(open_registry(store), ServeParams(port=0))
    assert code == 2 and said["error"]["code"] == "release.deployment_unknown"


def test_first_start_makes_a_key_and_later_ones_do_not(tmp_path: Path, smollm2_gguf: Path, launch_on: LaunchOn) -> None:
    from inhouse.release.keys import list_keys
    from inhouse.serve.app import first_key

    registry = workspace_with_two_releases(tmp_path / "fresh", smollm2_gguf)
    token = first_key(registry)
    assert token is not None and token.startswith("ih-")
    assert first_key(registry) is None
    assert [k.name for k in list_keys(registry.engine)] == ["first"]


def test_keys_that_open_nothing_for_others_do_not_keep_the_first_key_back(tmp_path: Path) -> None:
    from datetime import timedelta

    from inhouse.core.store import Store
    from inhouse.release.keys import LOCAL_KEY, create_key, revoke_key
    from inhouse.release.registry import open_registry
    from inhouse.serve.app import first_key

    registry = open_registry(Store(tmp_path / "trial"))
    create_key(registry.engine, LOCAL_KEY)
    create_key(registry.engine, "old", timedelta(days=-1))
    _, gone = create_key(registry.engine, "gone")
    revoke_key(registry.engine, gone.prefix)
    assert first_key(registry) is not None
    assert first_key(registry) is None
