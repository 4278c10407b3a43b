"""Manifests against the published schemas; the pods' command as two processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from vidvq import config
from vidvq.formats.checkpoint import list_steps, read_checkpoint
from vidvq.generate.config import GenerateTrainConfig
from vidvq.submit import VERBS, Job, Resources, logs, submit
from vidvq.submit.kubernetes import Backend, manifest
from vidvq.train import TrainConfig

ASKED = Resources(nodes=2, gpus=0, image="vidvq:0.1", volumes=("data:/data",), secrets=("s3-keys",), namespace="ml")
TINY = [
    "data.batch_size=2",
    "data.crop=32",
    "data.num_frames=5",
    "data.workers=1",
    "checkpoint_every=2",
    "model.encoder={channels: [8, 8], blocks: [1, 1]}",
    "model.decoder={channels: [8, 8], blocks: [1, 1]}",
    "model.quantizer.spatial={kind: vq, size: 32, warmup: 2}",
    "model.quantizer.temporal={kind: vq, size: 32, warmup: 2}",
    "loss.adversarial=0",
]


def job_of(verb: str, settings: dict | None = None, out: str = "/data/out") -> Job:
    arguments = () if "train" in verb else ("/data/a b'c\"$(touch harm)", "--out", "/data/out")
    return Job(verb, arguments, settings or {}, out, "kubernetes", ASKED, "/here", "python")


def objects(job: Job) -> dict[str, dict]:
    return {item["kind"]: item for item in manifest(job)["items"]}


@pytest.mark.parametrize("verb", VERBS)
def test_core_objects_keep_to_the_published_schema(verb):
    made = objects(job_of(verb))
    assert made.keys() == ({"ConfigMap", "Service", "Job"} if "train" in verb else {"ConfigMap", "RayJob"})
    for kind, item in made.items():
        if kind != "RayJob":
            kubernetes_validate.validate(item, "1.37", strict=True)
    # The pods of a RayJob are Kubernetes' own.
    if "RayJob" in made:
        cluster = made["RayJob"]["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
            kubernetes_validate.validate(pod, "1.37", strict=True)


@pytest.mark.parametrize("verb", ["train", "shard"])
def test_pods_are_restricted_as_an_administrator_expects(verb):
    made = objects(job_of(verb))
    spec = (made["Job"] if verb == "train" else made["RayJob"])["spec"]
    assert spec["ttlSecondsAfterFinished"] > 0
    groups = [spec] if verb == "train" else [spec["rayClusterSpec"]["headGroupSpec"]]
    for pod in (group["template"]["spec"] for group in groups):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["fsGroup"] == 1000
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"]["memory"] and container["imagePullPolicy"] == "IfNotPresent"
        shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["sizeLimit"]


def test_the_pods_of_a_training_start_together_and_find_the_first():
    made = objects(replace(job_of("train"), resources=replace(ASKED, nodes=3, gpus=8)))
    service, spec = made["Service"]["spec"], made["Job"]["spec"]
    # Its name is resolved before it is ready.
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    pod = spec["template"]["spec"]
    assert (pod["subdomain"], pod["restartPolicy"]) == (made["Service"]["metadata"]["name"], "Never")
    # A failure is one of every pod.
    assert spec["backoffLimit"] == 9
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert {"name": "GPUS", "value": "8"} in container["env"] and {"name": "NPROC", "value": "8"} in container["env"]


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_ray_job_has_a_pod_for_each_node(nodes):
    made = objects(replace(job_of("tokenize"), resources=replace(ASKED, nodes=nodes, gpus=2, cpus=16, queue="long")))
    cluster = made["RayJob"]["spec"]["rayClusterSpec"]
    groups = cluster.get("workerGroupSpecs", [])
    assert [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in groups] == [(2, 2, 2)] * (nodes > 1)
    for group in (cluster["headGroupSpec"], *groups):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
        assert container["resources"]["requests"] == {"memory": "32Gi", "cpu": "16"}
    assert made["RayJob"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "long"
    assert made["RayJob"]["metadata"]["namespace"] == "ml"


@pytest.mark.parametrize("verb", VERBS)
def test_memory_and_shared_memory_are_those_asked_for(verb):
    made = objects(replace(job_of(verb), resources=replace(ASKED, cpus=4, memory="96Gi", shm_size="40960Mi")))
    if "train" in verb:
        groups = [made["Job"]["spec"]]
        kubernetes_validate.validate(made["Job"], "1.37", strict=True)
    else:
        cluster = made["RayJob"]["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"] == {"requests": {"memory": "96Gi", "cpu": "4"}, "limits": {"memory": "96Gi"}}
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "40960Mi"}}
        assert shm in group["template"]["spec"]["volumes"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)


@pytest.mark.parametrize("size", ["64", "64GB", "0Gi", "1.5Gi", "-1Gi", "64Gi\n", "٣Gi"])
def test_a_size_is_a_number_of_gi_or_mi(size, vidvq, demo_videos, tmp_path):
    command = ["submit", "shard", demo_videos, "--out", tmp_path / "o", "--backend", "kubernetes", "--image", "i"]
    for option in ("memory", "shm-size"):
        ran = vidvq(*command, f"--{option}={size}", "--dry-run")
        assert ran.code == 2 and f"{option.replace('-', '_')}={size!r} must be a number of Gi or Mi" in ran.error


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/vidvq", "/dev/shm", "/proc/1", "/usr/lib", "/data/../etc"])
def test_a_volume_over_the_system_is_refused(path):
    job = replace(job_of("shard"), resources=replace(ASKED, volumes=(f"data:{path}",)))
    with pytest.raises(ValueError, match="must be mounted at a path of its own"):
        Backend().check(job, dry_run=True)


PUBLISHED = os.environ.get("KUBERAY_CRD")


@pytest.mark.skipif(not PUBLISHED, reason="give KubeRay's ray.io_rayjobs.yaml as KUBERAY_CRD")
@pytest.mark.parametrize("verb", ["shard", "tokenize"])
def test_a_ray_job_keeps_to_the_definition_that_kuberay_publishes(verb):
    versions = yaml.safe_load(Path(str(PUBLISHED)).read_text())["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    closed(schema)
    jsonschema.Draft7Validator(schema).validate(objects(job_of(verb))["RayJob"])


def closed(schema: object) -> None:
    """Refuse what is not in it; the API server would drop it without a word."""
    if isinstance(schema, list):
        for item in schema:
            closed(item)
    if isinstance(schema, dict):
        if schema.pop("x-kubernetes-int-or-string", False):
            schema.pop("type", None)
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for item in list(schema.values()):
            closed(item)


def test_secrets_are_named_never_held(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    text = json.dumps(manifest(job_of("train")))
    assert "hunter2" not in text
    assert '{"secretRef": {"name": "s3-keys"}}' in text


def test_the_entrypoint_of_a_ray_job_is_quoted():
    entrypoint = objects(job_of("shard"))["RayJob"]["spec"]["entrypoint"]
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {entrypoint}"], capture_output=True, text=True, check=True)
    assert "/data/a b'c\"$(touch harm)" in said.stdout.splitlines()


def start_pods(folder: Path, verb: str, overrides: list[str], out: Path, python: Path) -> list[subprocess.Popen]:
    """Start the command of both pods on this machine, with another interpreter."""
    kind, name = (TrainConfig, "demo") if verb == "train" else (GenerateTrainConfig, "generate-nano")
    settings = config.to_dict(config.load(kind, config.find_config(name), [*overrides, f"out={out}", "steps=100000"]))
    made = objects(job_of(verb, settings, str(out)))
    etc = folder / "etc"
    etc.mkdir()
    for name, text in made["ConfigMap"]["data"].items():
        (etc / name).write_text(text)
    assert yaml.safe_load((etc / "config.yaml").read_text())["steps"] == 100000
    container = made["Job"]["spec"]["template"]["spec"]["containers"][0]
    command = [part.replace("/etc/vidvq", str(etc)) for part in container["command"]]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert variables["HEAD"] == f"{made['Job']['metadata']['name']}-0.{made['Service']['metadata']['name']}:29500"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        variables["HEAD"] = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            command,
            env=os.environ | variables | {"NODE_RANK": str(rank), "PYTHON": str(python)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(("verb", "command"), [("train", "train"), ("generate train", "generate train --config")])
def test_the_pods_command_starts_torchrun_with_the_rank_of_the_pod(tmp_path, verb, command):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1 $2" in\n'
        "  *torch.distributed.run) printf '%s\\n' \"$@\";;\n"
        "  -c*) echo 1;;\n"
        f'  *) exec {sys.executable} "$@";;\n'
        "esac\n"
    )
    python.chmod(0o755)
    overrides = ["data.clips=clips"] if verb == "train" else []
    for rank, pod in enumerate(start_pods(tmp_path, verb, overrides, tmp_path / "out", python)):
        said, errors = pod.communicate(timeout=300)
        assert pod.returncode == 0, errors
        words = said.splitlines()
        assert words[:6] == ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)]
        assert said.endswith("\n".join(["", "-m", "vidvq", *command.split(), str(tmp_path / "etc/config.yaml"), ""]))


# By default, tests/distributed/test_ssh.py starts torchrun on two hosts.
@pytest.mark.slow
def test_the_pods_command_trains_as_two_processes_and_saves_when_asked_to_stop(tmp_path, clips_dir):
    out = tmp_path / "out"
    pods = start_pods(tmp_path, "train", [f"data.clips={clips_dir}", *TINY], out, Path(sys.executable))
    deadline = time.monotonic() + 300
    while not list_steps(out):
        assert all(pod.poll() is None for pod in pods), [pod.communicate() for pod in pods]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for pod in pods:
        pod.send_signal(signal.SIGTERM)
    told = [pod.communicate(timeout=300)[1] for pod in pods]
    assert all(pod.returncode for pod in pods)
    assert f"step {read_checkpoint(out).config['step']} is saved" in told[0] + told[1]


@pytest.mark.parametrize(
    ("out", "lost"),
    [("/data/out", False), ("/data", False), ("s3://bucket/out", False), ("/database", True), ("/here/out", True)],
)
def test_an_output_in_no_volume_is_said_to_be_lost(capsys, out, lost):
    Backend().check(job_of("train", out=out), dry_run=True)
    assert (f"out={out} is in no --volume" in capsys.readouterr().err) == lost


def test_no_kubectl_and_no_image_are_one_line(vidvq, demo_videos, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(shutil.which("bash") or "").parent) if not shutil.which("kubectl") else "/x")
    command = ["submit", "shard", demo_videos, "--out", tmp_path / "o", "--backend", "kubernetes"]
    ran = vidvq(*command, "--job", tmp_path / "r")
    assert ran.code == 2
    assert "needs --image" in ran.error
    ran = vidvq(*command, "--job", tmp_path / "r", "--image", "vidvq:0.1")
    assert ran.code == 2
    assert "kubectl is not on the path" in ran.error
    assert not (tmp_path / "r").exists()


# Keeps the objects that it was given in a file.
KUBECTL = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
*delete*) rm -f "$CALLS.objects" ;;
*apply*) touch "$CALLS.objects" ;;
*"-o json"*) [ ! -e "$CALLS.objects" ] || echo "$STATUS" ;;
esac
"""
# Prints one log after another, and fails while a pod has not started.
LOGS = """#!/bin/sh
case "$*" in
*"-o json"*) echo "$STATUS" ;;
*logs*)
    set -- "$CALLS".log*
    log=$(cat "$1")
    [ $# -eq 1 ] || rm "$1"
    echo "$log"
    case "$log" in *pod/b*) exit ;; esac
    echo 'Error from server (BadRequest): container "vidvq" in pod "b" is waiting to start: ContainerCreating' >&2
    exit 1
    ;;
esac
"""


def use_kubectl(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "bin/kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(script)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STATUS", json.dumps({"status": {"ready": 1, "jobStatus": "RUNNING"}}))


@pytest.mark.parametrize("verb", ["train", "shard"])
def test_a_job_whose_submission_was_killed_or_that_runs_for_another_folder_is_found(tmp_path, monkeypatch, verb):
    use_kubectl(KUBECTL, tmp_path, monkeypatch)
    job = job_of(verb)
    assert submit(job, tmp_path / "run").status is None
    (tmp_path / "run/attempts/1.json").unlink()
    for folder in ("run", "other"):
        again = submit(job, tmp_path / folder)
        assert again.status is not None and again.status.state == "running"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("apply" in call for call in calls) == 1
    # What an earlier job of the same name left does not stand for this one.
    ended = {"jobStatus": "FAILED", "conditions": [{"type": "Failed", "status": "True"}]}
    monkeypatch.setenv("STATUS", json.dumps({"status": ended}))
    assert submit(job, tmp_path / "third").status is None
    assert all("--namespace ml" in call for call in calls)


def test_followed_logs_have_each_line_of_every_pod_once(tmp_path, monkeypatch):
    use_kubectl(KUBECTL, tmp_path, monkeypatch)
    submit(job_of("train"), tmp_path / "run")
    (tmp_path / "bin/kubectl").write_text(LOGS)
    a, b = ([f"[pod/{pod}/vidvq] line {number}\n" for number in range(3)] for pod in "ab")
    # kubectl reads the pods in no fixed order.
    for number, lines in enumerate(([a[0]], [a[0], a[1], b[0]], [b[0], b[1], *a], [*a, *b], [*b, *a])):
        (tmp_path / f"calls.log{number}").write_text("".join(lines))
    followed = logs(tmp_path / "run", follow=True)
    found = [next(followed).decode() for _ in range(2)]
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    monkeypatch.setenv("STATUS", json.dumps({"status": ended}))
    found += [part.decode() for part in followed]
    assert sorted("".join(found).splitlines(True)) == sorted([*a, *b])
