"""What `inhouse doctor` and `inhouse models list` say of a machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inhouse.core.messages import use_language
from inhouse.select import doctor, hardware, memory
from inhouse.select.doctor import Check, Diagnosis, check_extra, check_models, check_network, check_port, examine
from inhouse.select.hardware import Gpu, Hardware, container_limit, graphics_cards, look, nearest, processor
from inhouse.select.models import list_models

GIB = 2**30


@pytest.fixture(autouse=True)
def english():
    """Texts in English, whatever the machine's locale."""
    use_language("en")


def machine(**changes: object) -> Hardware:
    """An ordinary machine."""
    return Hardware(
        **{
            "system": "Linux x86_64",
            "processor": "test",
            "cores": 4,
            "memory_bytes": 16 * GIB,
            "free_memory_bytes": 12 * GIB,
            "free_disk_bytes": 100 * GIB,
            **changes,
        }
    )


def test_examination_of_this_machine_is_complete_without_torch_or_a_socket(tmp_path):
    code = (
        "import socket, sys, time; from pathlib import Path; began = time.perf_counter(); socket.socket = None;"
        "from inhouse.select.doctor import examine;"
        f"d = examine(Path({str(tmp_path)!r}), offline=True);"
        "names = {c.name for c in d.checks};"
        "assert {'python', 'memory', 'disk', 'extra.train', 'port', 'network', 'sources'} <= names, names;"
        "assert 'torch' not in sys.modules and 'polars' not in sys.modules;"
        "assert time.perf_counter() - began < 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_messages_are_in_the_language_in_use(tmp_path):
    use_language("zh")
    messages = [c.message for c in examine(tmp_path).checks if c.name != "cores"]
    assert all(any("\u4e00" <= ch <= "\u9fff" for ch in m) for m in messages if not m.startswith("Python"))


def test_old_python_is_missing():
    assert doctor.check_python((3, 10, 4)).status == "missing"
    assert "3.11" in doctor.check_python((3, 10, 4)).message


@pytest.mark.parametrize(("cores", "status"), [(1, "warn"), (2, "ok")])
def test_single_core_is_a_warning(cores, status):
    assert doctor.check_cores(machine(cores=cores)).status == status


def test_little_memory_is_a_warning():
    check = doctor.check_memory(machine(free_memory_bytes=1 * GIB))
    assert (check.status, check.facts["free"]) == ("warn", "1.0")
    assert doctor.check_memory(machine()).status == "ok"


def test_little_disk_is_a_warning(tmp_path):
    assert doctor.check_disk(machine(free_disk_bytes=GIB), tmp_path).status == "warn"
    assert doctor.check_disk(machine(), tmp_path).status == "ok"


def test_folder_that_cannot_be_written_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_disk(machine(), tmp_path).status == "missing"


def test_graphics_cards_are_named():
    card = Gpu(name="NVIDIA H100", memory_bytes=80 * GIB, free_bytes=79 * GIB)
    assert "NVIDIA H100 (80.0 GiB)" in doctor.check_graphics(machine(gpus=(card,))).message
    assert "No NVIDIA card" in doctor.check_graphics(machine()).message


def test_absent_extra_names_the_command():
    check = check_extra("train", ("torch", "no_such_module"))
    assert check.status == "missing"
    assert 'pip install "inhouse[train]"' in check.message
    assert "no_such_module" in check.message


def test_installed_extra_names_its_version():
    import sklearn

    assert f"sklearn {sklearn.__version__}" in check_extra("eval", ("sklearn",)).message
    assert doctor.version_of("no_such_distribution") == "?"


def test_absent_pip_names_the_command(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "ensurepip" in doctor.check_pip().message


def test_kept_sources_are_listed(tmp_path):
    assert check_models(tmp_path).status == "warn"
    entry = tmp_path / "pypi" / "toy-1.2-0123456789ab"
    entry.mkdir(parents=True)
    (entry / "source.json").write_text("{}")
    assert "toy-1.2" in check_models(tmp_path).message


def test_port_that_is_listened_on_is_a_warning():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert check_port(port).status == "ok"
        listener.listen()
        assert check_port(port).status == "warn"


def test_port_that_the_system_does_not_tell_is_taken_as_free(monkeypatch):
    import psutil

    def refuse(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    assert check_port(80).status == "ok"


def test_network_switch_is_told():
    assert "switched off" in check_network(True).message
    assert "may be used" in check_network(False).message


@pytest.mark.parametrize(
    ("found", "worst"),
    [(("ok", "ok"), "ok"), (("ok", "warn"), "warn"), (("warn", "missing"), "missing")],
)
def test_worst_check_decides(found, worst):
    checks = tuple(Check(name=s, status=s, message="") for s in found)
    assert Diagnosis(hardware=machine(), checks=checks).status == worst


def test_measured_machine_agrees_with_psutil(tmp_path):
    import psutil

    found = look(tmp_path / "not" / "there")
    assert 0 < found.memory_bytes <= psutil.virtual_memory().total
    assert 0 < found.free_memory_bytes <= found.memory_bytes
    assert found.free_disk_bytes > 0
    assert found.cores >= 1
    assert nearest(tmp_path / "not" / "there") == tmp_path


def test_processor_is_read_from_cpuinfo(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Test 9000\nflags\t: sse avx2 avx512_bf16\n\nprocessor\t: 1\n")
    assert processor(info) == ("Test 9000", ("avx2", "avx512_bf16"))
    info.write_text("Features\t: fp asimddp i8mm\n")
    assert processor(info)[1] == ("asimddp", "i8mm")
    assert processor(tmp_path / "none")[1] == ()


def test_container_limit_is_the_first_that_is_set(tmp_path):
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "old").write_text("1048576\n")
    assert container_limit(tmp_path / "none", tmp_path / "max", tmp_path / "old") == 1048576
    assert container_limit(tmp_path / "max") is None


def _program(folder: Path, body: str, monkeypatch) -> None:
    """A stand-in nvidia-smi on the PATH: this machine may have none."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: str(path))


def test_cards_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    _program(tmp_path, "echo 'NVIDIA H100, 81559, 80000'; echo 'Shared, [N/A], [N/A]'", monkeypatch)
    assert graphics_cards() == (Gpu(name="NVIDIA H100", memory_bytes=81559 * 2**20, free_bytes=80000 * 2**20),)


def test_nvidia_smi_that_fails_means_no_cards(tmp_path, monkeypatch):
    _program(tmp_path, "exit 9", monkeypatch)
    assert graphics_cards() == ()
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert graphics_cards() == ()


def test_models_are_judged_by_memory_and_licence():
    rows = {r.name: r for r in list_models(machine())}
    small, large = rows["smollm2-135m-instruct"], rows["qwen3-30b-a3b"]
    assert (small.serve, small.train, small.served_as, small.use) == ("fits", "fits", "q8_0", "any")
    assert (large.serve, large.train, large.served_as) == ("too_large", "too_large", "q4_k_m")
    assert rows["qwen2.5-3b-instruct"].use == "research"
    assert [r.parameters for r in rows.values()] == sorted(r.parameters for r in rows.values())


def test_large_card_lets_a_large_model_fit():
    card = Gpu(name="H100", memory_bytes=80 * GIB, free_bytes=80 * GIB)
    rows = {r.name: r for r in list_models(machine(gpus=(card,)))}
    assert rows["qwen3-30b-a3b"].serve == "fits"


def test_weights_estimate_agrees_with_a_published_file():
    # SmolLM2-135M F16: 270,885,152 bytes with its header and fp32 norms; Q8_0 145 MB (docs of both files).
    assert memory.weights_bytes(134_515_008, "f16") == pytest.approx(270_885_152, rel=0.01)
    assert memory.weights_bytes(134_515_008, "q8_0") == pytest.approx(145e6, rel=0.02)


def test_cache_of_a_known_model_by_hand():
    # Llama 3 8B: 32 layers, 8 heads of 128, 2 bytes, keys and values: 128 KiB a token.
    assert memory.kv_cache_bytes(32, 8, 128, 1) == 131_072


def test_training_state_by_hand():
    assert memory.state_bytes(100, 100, "full") == 1600
    assert memory.state_bytes(100, 10, "lora") == 560


def test_full_training_needs_more_than_lora_and_grows_with_the_batch():
    shape = memory.Shape(
        parameters=134_515_008, layers=30, kv_heads=3, head_size=64, hidden=576, heads=9, vocabulary=49152
    )
    lora, full = (memory.training_bytes(shape, m, 1, 256) for m in ("lora", "full"))
    assert lora < full
    assert memory.training_bytes(shape, "lora", 2, 256) > lora


def test_lora_estimate_agrees_with_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        vocab_size=64,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules="all-linear"))
    trained, _ = model.get_nb_trainable_parameters()
    shape = memory.Shape(parameters=1, layers=2, kv_heads=1, head_size=64, hidden=192, heads=3, vocabulary=64)
    assert memory.lora_parameters(shape, 16) == pytest.approx(trained, rel=0.2)


@pytest.mark.parametrize(("needed", "verdict"), [(79, "fits"), (81, "tight"), (100, "tight"), (101, "too_large")])
def test_verdict_at_its_bounds(needed, verdict):
    assert memory.verdict(needed, 100) == verdict
