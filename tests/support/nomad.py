"""Jobs for Nomad's qemu driver: read, compared with the fields that Nomad documents, and the command that the driver makes of one."""

from __future__ import annotations

import json
from typing import Any

import hcl2

from tests.support.schemas import complaint


def _block(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _blocks(properties: dict[str, Any], required: tuple[str, ...] = (), count: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": _block(properties, required), "minItems": count, "maxItems": count}


def _labelled(
    properties: dict[str, Any], required: tuple[str, ...] = (), pattern: str = "^[a-z0-9-]+$"
) -> dict[str, Any]:
    named = {
        "type": "object",
        "patternProperties": {pattern: _block(properties, required)},
        "additionalProperties": False,
    }
    return {"type": "array", "items": {**named, "minProperties": 1, "maxProperties": 1}}


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
# Of https://developer.hashicorp.com/nomad/docs/job-specification and its page of the qemu driver: what a job of ours uses.
_CONFIG = {
    "image_path": {"const": "local/disk.qcow2"},
    "drive_interface": {"enum": ["ide", "scsi", "sd", "mtd", "floppy", "pflash", "virtio", "none"]},
    "accelerator": {"const": "${var.accelerator}"},
    "args": {"type": "array", "items": _TEXT},
    "graceful_shutdown": {"type": "boolean"},
    "guest_agent": {"type": "boolean"},
    "port_map": {"type": "object"},
}
_ARTIFACT = {
    "source": {"type": "string", "pattern": r"^\$\{var\.source\}/[a-z0-9.]+$"},
    "options": _blocks({"checksum": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}}, ("checksum",)),
}
_TASK = {
    "driver": {"const": "qemu"},
    "artifact": _blocks(_ARTIFACT, ("source", "options"), 3),
    "config": _blocks(_CONFIG, ("image_path",)),
    "resources": _blocks({"cores": _COUNT, "memory": {**_COUNT, "minimum": 128}}, ("cores", "memory")),
}
_GROUP = {"task": _labelled(_TASK, ("driver", "config", "resources"))}
_JOB = {
    "type": {"enum": ["batch", "service", "system", "sysbatch"]},
    "constraint": _blocks({"attribute": _TEXT, "value": _TEXT}, ("attribute", "value")),
    "group": _labelled(_GROUP, ("task",)),
}
_VARIABLE = {"type": {"const": "string"}, "description": _TEXT, "default": {"type": "string"}}
SCHEMA = _block({"variable": _labelled(_VARIABLE, ("type",)), "job": _labelled(_JOB, ("group",))}, ("job",))


def read_job(text: str) -> dict[str, Any]:
    """The job as plain values; ValueError if it has a field that Nomad does not document."""
    value = _plain(hcl2.loads(text))
    if wrong := complaint(value, SCHEMA):
        raise ValueError(wrong)
    assert isinstance(value, dict)
    return value


def _plain(value: Any) -> Any:
    """Without the parser's remarks, and texts without their quotes."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return json.loads(value) if isinstance(value, str) and value.startswith('"') else value


def task_of(job: dict[str, Any]) -> dict[str, Any]:
    """The only task of a job."""
    (named,) = job["job"]
    (body,) = named.values()
    (group,) = body["group"][0].values()
    (task,) = group["task"][0].values()
    assert isinstance(task, dict)
    return task


def driver_command(task: dict[str, Any], accelerator: str) -> list[str]:
    """QEMU's command as the driver makes it, to be started in the task's directory."""
    (config,), (resources,) = task["config"], task["resources"]
    return [
        *("qemu-system-x86_64", "-machine", f"type=pc,accel={accelerator}", "-name", "disk.qcow2"),
        *("-m", f"{resources['memory']}M"),
        *("-drive", f"file={config['image_path']},if={config['drive_interface']}", "-nographic"),
        *config["args"],
        *(("-enable-kvm", "-cpu", "host") if accelerator == "kvm" else ()),
    ]
