"""Launch files: each is what its scheduler reads, and the shell file really trains in two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from inhouse.api.launch import LaunchRequest, launch_training
from inhouse.core.errors import UserError
from inhouse.train.launch.deepspeed import deepspeed_settings

PROJECT = """
name: tiny
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
  split: {{test: 0.25}}
train: {train}
"""
TRAIN = "{{method: {{use: lora, r: 4}}, num_train_epochs: 1, per_device_train_batch_size: 4, precision: fp32{more}}}"
SLURM = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "output", "open-mode", "requeue"}
AWKWARD = "it's $HOME; a folder"  # a path that no shell may take apart


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project file in a folder whose name a shell would take apart."""
    return write_project(tmp_path / AWKWARD, tmp_path / "no-model")


def write_project(folder: Path, base: Path, train: str = TRAIN.format(more="")) -> Path:
    folder.mkdir(parents=True)
    rows = [
        f"the {word} {number},{label}" for number in range(8) for word, label in (("bank", "money"), ("corn", "grain"))
    ]
    (folder / "news.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    file = folder / "inhouse.yaml"
    file.write_text(PROJECT.format(base=base, train=train))
    return file


def request(project: Path, **more: Any) -> LaunchRequest:
    plain = {"project": project, "workspace": project.parent / ".inhouse", "folder": project.parent / "launch"}
    return LaunchRequest.model_validate(plain | more)


def written(asked: LaunchRequest) -> str:
    return launch_training(asked).files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("strategy", "override", "code"),
    [
        ("fsdp2", "train.privacy={epsilon: 8}", "train.parallel_alone"),
        ("ddp", "train.penalties=[{use: l2_sp}]", "train.parallel_alone"),
        ("tp", "train.eval_steps=2", "train.parallel_method"),
        ("pp", "train.objective=dpo", "train.parallel_method"),
        ("zero2", "train.privacy={epsilon: 8}", "train.parallel_alone"),
    ],
)
def test_launch_files_are_written_for_no_training_that_would_be_refused(
    project: Path, strategy: str, override: str, code: str
) -> None:
    with pytest.raises(UserError) as error:
        launch_training(request(project, kind="slurm", nodes=2, gpus=2, strategy=strategy, overrides=(override,)))
    assert error.value.code == code
    assert not (project.parent / "launch").exists()


@pytest.mark.parametrize("wrong", [{"image": "a b"}, {"image": "x\ny: z"}, {"claim": "C_1"}, {"claim": "-a"}])
def test_names_that_kubernetes_does_not_take_are_refused(project: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        request(project, kind="kubernetes", nodes=2, **{"image": "reg.example:5000/team/in_house@sha256:ab", **wrong})
    request(project, kind="kubernetes", nodes=2, image="reg.example:5000/team/in_house:1.0", claim="shared-data.1")


def words_of(script: str) -> list[str]:
    """The words of the script's last command, as a shell reads them."""
    return shlex.split(script[script.index("-m torch.distributed.run") :].replace("\\\n", " "))


def shell_is_sound(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    if checker := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
        # SC2016 is about a $ in single quotes: the awkward path, which must stay as it is.
        found = subprocess.run([checker, "-e", "SC2016", str(file)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_shell_file_is_sound_and_hands_awkward_paths_on_whole(project: Path) -> None:
    made = launch_training(request(project, nodes=3, gpus=4, python="/opt/my python/bin/python"))
    shell_is_sound(made.files[0])
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in made.files[0].read_text()  # or restarts hang: tried
    words = words_of(made.files[0].read_text())
    options = dict(zip(words[2:14:2], words[3:15:2], strict=True))
    assert options["--nnodes"] == "3"
    assert options["--nproc-per-node"] == "4"
    assert options["--rdzv-endpoint"] == "$MASTER_ADDR:$MASTER_PORT"
    at = words.index("inhouse.api.rank")
    assert words[at + 1 :] == [str(project), "train.parallel.kind=fsdp2", "train.parallel.processes=12"]
    assert (made.processes, made.strategy) == (12, "fsdp2")


def test_slurm_file_has_known_directives_before_its_first_command(project: Path) -> None:
    asked = request(project, kind="slurm", nodes=4, gpus=8, cpus=6, partition="a100", account="lab", time="2-00:00:00")
    file = launch_training(asked).files[0]
    shell_is_sound(file)
    lines = file.read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first
    found = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[number]).groups() for number in directives)  # type: ignore[union-attr]
    assert found.keys() == SLURM | {"partition", "account", "gpus-per-node"}
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("4", "1", "8")
    assert (found["cpus-per-task"], found["time"], found["partition"]) == ("48", "2-00:00:00", "a100")


def test_slurm_file_without_gpus_asks_for_none(project: Path) -> None:
    text = written(request(project, kind="slurm", gpus=0))
    assert "gpus-per-node" not in text
    assert "partition" not in text
    assert "--nproc-per-node 1 " in text


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (4, 8), (2, 0)])
def test_kubernetes_file_fits_the_operators_schema(project: Path, nodes: int, gpus: int) -> None:
    import jsonschema

    asked = {"kind": "kubernetes", "nodes": nodes, "gpus": gpus, "image": "registry.example/in:1", "claim": "shared"}
    job = yaml.safe_load(written(request(project, **asked)))
    schema = json.loads(Path(__file__).with_name("pytorchjob.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(job)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert sum(one["replicas"] for one in replicas.values()) == nodes
    assert job["spec"]["nprocPerNode"] == str(max(1, gpus))
    container = replicas["Master"]["template"]["spec"]["containers"][0]
    assert container["args"][0] == str(project)
    assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
    assert container["volumeMounts"][0]["mountPath"] == str(project.parent)
    assert {"name": "INHOUSE_OFFLINE", "value": "1"} in container["env"]


def test_ray_file_asks_for_a_worker_each_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.train.torch")
    file = launch_training(request(project, kind="ray", nodes=2, gpus=4)).files[0]
    spec = importlib.util.spec_from_file_location("generated_ray_train", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = module.trainer()
    assert trainer.scaling_config.num_workers == 8
    assert trainer.scaling_config.num_gpus_per_worker == 1
    assert str(project) == module.PROJECT
    called: list[Any] = []
    monkeypatch.setattr("inhouse.api.rank.main", lambda *given: called.append(given) or 2)
    with pytest.raises(RuntimeError, match="exit code 2"):
        module.train({"project": module.PROJECT, "settings": module.SETTINGS})
    assert called == [(project, ("train.parallel.kind=fsdp2", "train.parallel.processes=8"))]


@pytest.mark.parametrize(
    ("strategy", "gpus", "kind"), [("fsdp2", 8, "FSDP"), ("ddp", 4, "MULTI_GPU"), ("tp", 0, "MULTI_CPU")]
)
def test_accelerate_loads_its_file(project: Path, strategy: str, gpus: int, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    made = launch_training(request(project, kind="accelerate", nodes=3, gpus=gpus, strategy=strategy))
    config = load_config_from_file(str(made.files[0]))  # refuses keys that accelerate does not know
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (3, 3 * max(1, gpus))
    assert config.use_cpu is (gpus == 0)
    sharded = {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"} if kind == "FSDP" else {}
    assert sharded.items() <= config.fsdp_config.items()


def test_a_chain_of_trainings_is_set_training_by_training(tmp_path: Path) -> None:
    section = TRAIN.format(more="")
    project = write_project(tmp_path / "chain", tmp_path, f"[{section}, {section}]")
    words = words_of(written(request(project, strategy="zero3", nodes=2, gpus=1)))
    assert words[-6:] == [
        f"train.{place}.parallel.{key}" for place in (0, 1) for key in ("kind=deepspeed", "processes=2", "zero=3")
    ]


def test_the_projects_own_way_of_cutting_is_kept(tmp_path: Path) -> None:
    own = TRAIN.format(more=", parallel: {kind: deepspeed, zero: 1}")
    project = write_project(tmp_path / "own", tmp_path, own)
    assert launch_training(request(project)).strategy == "zero1"
    assert launch_training(request(project, strategy="pp")).strategy == "pp"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"nodes": 1, "gpus": 1}, "launch.one_process"),
        ({"kind": "kubernetes", "claim": "shared"}, "launch.image"),
        ({"strategy": "zero2", "gpus": 0}, "launch.strategy"),
        ({"storage": Path("/elsewhere")}, "launch.outside"),
    ],
)
def test_what_could_not_run_is_refused(project: Path, more: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as told:
        launch_training(request(project, **more))
    assert told.value.code == code
    assert not (project.parent / "launch").exists()


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_deepspeed_settings_are_keys_that_deepspeed_has(zero: Any, offload: Any) -> None:
    """Keys and values of DeepSpeed 0.19.8: runtime/config.py, runtime/zero/{config,offload_config}.py."""
    found = deepspeed_settings(zero, offload, bf16=True)
    stage = found["zero_optimization"]
    offloads = {"offload_optimizer", "offload_param"}
    assert found.keys() <= {
        "bf16", "zero_optimization", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
        "gradient_clipping", "steps_per_print", "wall_clock_breakdown",
    }  # fmt: skip
    known = {"stage", "overlap_comm", "contiguous_gradients", "reduce_bucket_size", *offloads}
    assert stage.keys() <= known | {"stage3_gather_16bit_weights_on_model_save"}
    assert (stage["stage"], found["bf16"]) == (zero, {"enabled": True})
    expected = {"none": set(), "optimizer": {"offload_optimizer"}, "all": offloads}[offload]
    assert offloads & stage.keys() == (expected if zero == 3 else expected - {"offload_param"})
    assert all(stage[name] == {"device": "cpu", "pin_memory": True} for name in offloads & stage.keys())


def test_deepspeed_itself_takes_the_settings() -> None:
    """Where DeepSpeed is installed: its own models judge (a CPU is enough, nothing is built)."""
    config = pytest.importorskip("deepspeed.runtime.config")
    for zero in (1, 2, 3):
        for offload in ("none", "optimizer", "all"):
            settings = deepspeed_settings(zero, offload, bf16=True)  # type: ignore[arg-type]
            filled = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0}
            assert config.DeepSpeedConfig(settings | filled).zero_config.stage == zero


def test_the_shell_file_trains_in_two_processes(tmp_path: Path, tiny_llama: Path, warm_python: Path) -> None:
    train = TRAIN.format(more="")
    project = write_project(tmp_path / AWKWARD, tiny_llama, train)
    asked = request(project, nodes=1, gpus=2, strategy="ddp", python=str(warm_python), cpus=1, restarts=0)
    made = launch_training(asked)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", str(made.files[0])], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    events = [json.loads(line) for line in (asked.workspace / "launch" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "train.ended" for event in events) == 1
    tuned = asked.store.path(list(told["made"].values())[-1])
    assert (tuned / "adapter" / "adapter_model.safetensors").exists()
    assert (tuned / "merged" / "model.safetensors").exists()
