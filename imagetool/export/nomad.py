"""A job for Nomad's qemu driver, in HCL: https://developer.hashicorp.com/nomad/docs/job-declare/task-driver/qemu.

The driver always starts qemu-system-x86_64 with a machine of type pc, and does not say what format the disk has: QEMU then
restricts writes to a raw disk's first sector, so this is for qcow2. What the driver has no key for is in `args`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from imagetool.export.boot import Boot, qemu_options
from rootdisk.oci.documents import Digest

ARCHITECTURE = "amd64"
_DISK = "disk.qcow2"
_LOCAL = "local/"  # in the task's directory, where Nomad puts artifacts and the driver starts QEMU
_MEMORY_MIN_MIB = 128  # less is refused by the driver
_MARKS = ("${", "%{")  # of HCL's and Nomad's templates; Nomad replaces them in arguments, however they are written


def is_possible(boot: Boot, disk: str) -> bool:
    """Return whether Nomad's driver can boot `disk`."""
    is_template = any(mark in boot.kernel_args for mark in _MARKS)
    return boot.platform.architecture == ARCHITECTURE and disk == _DISK and not is_template


def nomad_job(boot: Boot, digests: Mapping[str, Digest]) -> str:
    """Return the job. `digests` are those of the disk, kernel and initramfs, which nodes fetch, by name."""
    artifacts = "".join(_artifact(name, digest) for name, digest in sorted(digests.items()))
    options = (
        "-machine",
        "graphics=on",
        *qemu_options(boot, _LOCAL),
    )  # -nographic, of the driver, has firmware on the console
    arguments = "".join(f"          {json.dumps(word)},\n" for word in options)
    return f"""\
# nomad job run -var source=URL nomad.hcl
variable "source" {{
  type        = string
  description = "Where nodes find the files of this directory: https://…, s3::https://… or another URL of Nomad's artifacts"
}}

variable "accelerator" {{
  type    = string
  default = "kvm"
}}

job "rootdisk-{digests[_DISK].hex[:12]}" {{
  type = "batch"

  constraint {{
    attribute = "${{attr.cpu.arch}}"
    value     = "{ARCHITECTURE}"
  }}

  group "machine" {{
    task "machine" {{
      driver = "qemu"
{artifacts}
      config {{
        image_path      = "{_LOCAL}{_DISK}"
        drive_interface = "virtio"
        accelerator     = var.accelerator
        args = [
{arguments}        ]
      }}

      resources {{
        cores  = {boot.cpus}
        memory = {max(boot.memory_mib, _MEMORY_MIN_MIB)}
      }}
    }}
  }}
}}
"""


def _artifact(name: str, digest: Digest) -> str:
    return f"""
      artifact {{
        source = "${{var.source}}/{name}"
        options {{
          checksum = "{digest}"
        }}
      }}
"""
