"""Backend for Kubernetes. Training runs as an indexed Job with a headless Service; shard and tokenize as a RayJob.

Training needs no operator; a RayJob needs KubeRay.
The manifest is written as JSON, so that no name in it needs YAML quoting.
"""

import json
import shlex
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from vidvq.errors import StoreError, UsageError
from vidvq.log import warn
from vidvq.submit.backend import Status
from vidvq.submit.job_directory import JobDirectory
from vidvq.submit.script import shared_out, template
from vidvq.submit.spec import Job

_PORT = 29500
_MOUNT_PATH = "/etc/vidvq"
_SAVE_LIMIT_S = 600
_RETRIES = 3
# User of the image that docker/Dockerfile builds; also the group of the mounted volumes.
_USER = 1000
_GIB_PER_CPU = 2
# Ray's object store and the data workers of training use it; the container's own has 64 MiB.
_SHM_SIZE = "16Gi"
# Finished jobs, and their pods and logs, are deleted after this time.
_KEEP_S = 7 * 86400
# Paths of the container's own system, and of other mounts.
_SYSTEM = frozenset("bin boot dev etc lib lib32 lib64 opt proc root run sbin sys tmp usr var".split())


class Backend:
    """Submits the job with kubectl. See :class:`vidvq.submit.backend.Backend`."""

    takes = frozenset(
        {"nodes", "gpus", "cpus", "memory", "shm_size", "queue", "image", "namespace", "volumes", "secrets"}
    )

    def check(self, job: Job, dry_run: bool) -> None:
        if not job.resources.image:
            raise UsageError(
                "the kubernetes backend needs --image, an image with vidvq; build one with docker/Dockerfile"
            )
        mounts = [volume.partition(":")[2] for volume in job.resources.volumes]
        for mount, volume in zip(mounts, job.resources.volumes, strict=True):
            _check_mount(mount, volume)
        effects = {f"{name}={path}": (path, "pods cannot read it") for path, name in job.training_data.items()}
        if shared_out(job):
            effects[f"out={job.out}"] = job.out, "it is lost with its pod"
        for setting, (path, effect) in effects.items():
            if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
                warn(f"{setting} is in no --volume: {effect}, unless the cluster mounts a volume there")
        if not dry_run:
            _find_kubectl()

    def files(self, job: Job, directory: JobDirectory) -> Mapping[str, str]:
        return {"manifest.json": json.dumps(manifest(job), indent=1) + "\n"}

    def command(self, job: Job, directory: JobDirectory) -> list[str]:
        return ["kubectl", *_namespace(job.resources.namespace), "apply", "-f", str(directory.path / "manifest.json")]

    def find(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any] | None:
        ids = _ids(job)
        # A job that has ended is not found: the next attempt deletes it.
        return None if self.status(directory, ids).ended else ids

    def submit(self, job: Job, directory: JobDirectory, attempt: int) -> dict[str, Any]:
        ids = _ids(job)
        # A finished job of the same name must be deleted first: applying its manifest again would change nothing.
        _kubectl(*_namespace(job.resources.namespace), "delete", "--ignore-not-found", f"{ids['kind']}/{job.name}")
        _kubectl(*self.command(job, directory)[1:])
        return ids

    def status(self, directory: JobDirectory, ids: dict[str, Any]) -> Status:
        found = json.loads(_get(ids, "get", "--ignore-not-found", "-o", "json", f"{ids['kind']}/{ids['name']}") or "{}")
        if not found:
            return Status("cancelled" if directory.cancelled.exists() else "lost", f"no {ids['kind']}/{ids['name']}")
        now = found.get("status", {})
        if ids["kind"] == "rayjob":
            state = {"SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "cancelled", "RUNNING": "running"}
            return Status(state.get(now.get("jobStatus", ""), "waiting"), now.get("message", ""))
        for condition in now.get("conditions", []):
            if condition["status"] == "True" and condition["type"] in {"Complete", "Failed"}:
                done = condition["type"] == "Complete"
                return Status("done" if done else "failed", condition.get("message", ""))
        return Status("running" if now.get("ready") else "waiting", f"{now.get('ready', 0)} pods ready")

    def log(self, directory: JobDirectory, ids: dict[str, Any], seen: Counter[str]) -> dict[str, bytes]:
        label = "batch.kubernetes.io/job-name" if ids["kind"] == "job" else "job-name"
        chosen = ["--selector", f"{label}={ids['name']}", "--prefix", "--tail=-1"]
        # kubectl fails if a pod has not started, and reads the others in no fixed order.
        printed = _get(ids, "logs", *chosen, allowed="is waiting to start")
        pods: defaultdict[str, list[str]] = defaultdict(list)
        for line in printed.splitlines(keepends=True):
            pods[line.partition("]")[0]].append(line)
        rests = {pod: "".join(lines).encode()[seen[pod] :] for pod, lines in pods.items()}
        return {pod: rest for pod, rest in rests.items() if rest}

    def cancel(self, directory: JobDirectory, ids: dict[str, Any]) -> None:
        _get(ids, "delete", "--wait=false", f"{ids['kind']}/{ids['name']}")


def manifest(job: Job) -> dict[str, Any]:
    """Build the Kubernetes ``List`` of a job's objects: a ConfigMap, and a Service and Job or a RayJob."""
    files = {"config.yaml": yaml.safe_dump(job.settings, sort_keys=False), "node.sh": template("node.sh")}
    files["pod.sh"], files["ray.sh"] = template("pod.sh"), template("ray.sh")
    objects = [_object("v1", "ConfigMap", job, {"data": files})]
    if job.is_training:
        ports = [{"name": "rendezvous", "port": _PORT}]
        service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _labels(job), "ports": ports}
        objects += [_object("v1", "Service", job, {"spec": service}), _training(job)]
    else:
        objects.append(_ray_job(job))
    return {"apiVersion": "v1", "kind": "List", "items": objects}


def _training(job: Job) -> dict[str, Any]:
    nodes = job.resources.nodes
    pod = _pod(job, ["bash", f"{_MOUNT_PATH}/pod.sh", *job.command_line(f"{_MOUNT_PATH}/config.yaml")])
    rank = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    pod["containers"][0]["env"] += [
        {"name": "NODES", "value": str(nodes)},
        {"name": "NODE_RANK", "valueFrom": rank},
        {"name": "HEAD", "value": f"{job.name}-0.{job.name}:{_PORT}"},
        {"name": "NPROC", "value": str(job.processes)},
        {"name": "GPUS", "value": str(job.resources.gpus)},
    ]
    pod |= {"subdomain": job.name, "restartPolicy": "Never", "terminationGracePeriodSeconds": _SAVE_LIMIT_S}
    spec = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        # A pod that fails ends the others; all restart and resume from the checkpoint.
        "backoffLimit": _RETRIES * nodes,
        "ttlSecondsAfterFinished": _KEEP_S,
        "template": {"metadata": {"labels": _labels(job)}, "spec": pod},
    }
    return _object("batch/v1", "Job", job, {"spec": spec})


def _ray_job(job: Job) -> dict[str, Any]:
    command = ["env", f"CONFIG={_MOUNT_PATH}/config.yaml", "bash", f"{_MOUNT_PATH}/ray.sh", job.verb, *job.arguments]
    worker = {"groupName": "workers", "replicas": job.resources.nodes - 1, "minReplicas": job.resources.nodes - 1}
    worker |= {"maxReplicas": job.resources.nodes - 1, "rayStartParams": {}, "template": {"spec": _pod(job, None)}}
    cluster = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": _pod(job, None)}}}
    if job.resources.nodes > 1:
        cluster["workerGroupSpecs"] = [worker]  # type: ignore[assignment]
    spec = {
        "entrypoint": shlex.join(command),
        "backoffLimit": _RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP_S,
        "rayClusterSpec": cluster,
    }
    return _object("ray.io/v1", "RayJob", job, {"spec": spec})


def _pod(job: Job, command: list[str] | None) -> dict[str, Any]:
    requested = job.resources
    limits = {"nvidia.com/gpu": str(requested.gpus)} if requested.gpus else {}
    requests = {"memory": requested.memory or f"{_GIB_PER_CPU * (requested.cpus or 4)}Gi"}
    limits |= {"memory": requested.memory} if requested.memory else {}
    requests |= {"cpu": str(requested.cpus)} if requested.cpus else {}
    mounts = [{"name": "files", "mountPath": _MOUNT_PATH, "readOnly": True}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "files", "configMap": {"name": job.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": requested.shm_size or _SHM_SIZE}},
    ]
    for number, volume in enumerate(requested.volumes):
        claim, _, path = volume.partition(":")
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    container: dict[str, Any] = {
        "name": "vidvq",
        "image": requested.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [{"name": "SHARED", "value": shared_out(job)}],
        "envFrom": [{"secretRef": {"name": name}} for name in requested.secrets],
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": mounts,
    }
    return {
        "containers": [container | ({"command": command} if command else {})],
        "volumes": volumes,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            # Large volumes are not searched at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _check_mount(path: str, volume: str) -> None:
    """Refuse to mount a volume over the container's own system."""
    parts = path.split("/")
    if not path.startswith("/") or len(parts) < 2 or parts[1] in {"", *_SYSTEM} or ".." in parts:
        raise UsageError(
            f"volume {volume} must be mounted at a path of its own, such as {volume.partition(':')[0]}:/data"
        )


def _object(version: str, kind: str, job: Job, rest: dict[str, Any]) -> dict[str, Any]:
    queue = {"kueue.x-k8s.io/queue-name": job.resources.queue} if job.resources.queue else {}
    metadata = {"name": job.name, "labels": _labels(job) | queue, **_named(job)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | rest


def _ids(job: Job) -> dict[str, Any]:
    return {"kind": "job" if job.is_training else "rayjob", "name": job.name, **_named(job)}


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/name": "vidvq", "app.kubernetes.io/instance": job.name}


def _named(job: Job) -> dict[str, str]:
    return {"namespace": job.resources.namespace} if job.resources.namespace else {}


def _namespace(name: str | None) -> list[str]:
    return ["--namespace", name] if name else []


def _get(ids: dict[str, Any], *arguments: str, allowed: str | None = None) -> str:
    return _kubectl(*_namespace(ids.get("namespace")), *arguments, allowed=allowed)


def _kubectl(*arguments: str, allowed: str | None = None) -> str:
    """Run kubectl and return its output, also that before an error whose message contains ``allowed``."""
    _find_kubectl()
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode and not (allowed and allowed in done.stderr):
        raise StoreError(f"kubectl failed: {' '.join(done.stderr.split())}")
    return done.stdout


def _find_kubectl() -> None:
    if not shutil.which("kubectl"):
        raise UsageError("kubectl is not on the path; install it, or print the manifest with --dry-run")
