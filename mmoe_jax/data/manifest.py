"""Manifest of prepared data: digests of its files; those that are read are verified per start."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmoe_jax import digests
from mmoe_jax.data.share import WHOLE, Share
from mmoe_jax.errors import require
from mmoe_jax.files import write_json

MANIFEST = "manifest.json"


def write_manifest(directory: str) -> None:
  """Writes manifest.json with size and digest of every other file below a directory.

  Raises:
    OSError: if it cannot be written.
  """
  files = {}
  for folder, _, names in sorted(os.walk(directory)):
    for name in sorted(names):
      path = os.path.join(folder, name)
      key = os.path.relpath(path, directory).replace(os.sep, "/")
      files[key] = {"bytes": os.path.getsize(path), "sha256": digests.of_file(path)}
  write_json(os.path.join(directory, MANIFEST), digests.seal({"files": files}))


def verify(directory: str, needed: list[str], share: Share = WHOLE) -> str:
  """Verifies the files that a run reads; each is read once, at the speed of SHA-256.

  Of several hosts, each verifies its share of the files.

  Data that was prepared before there were manifests is accepted, with a warning.

  Args:
    directory: folder of prepared data.
    needed: paths in the folder, with `/`.
    share: part of the files to verify here.

  Returns:
    A digest of these files, which identifies the data: a run resumes on the same data only.

  Raises:
    UserError: naming a file that is missing, or differs from what was prepared.
    OSError: if one cannot be read.
  """
  path = os.path.join(directory, MANIFEST)
  manifest = _read(path) if os.path.exists(path) else None
  if manifest is None:
    print(
      f"warning: {directory}: contains no {MANIFEST} and cannot be verified; it was prepared by an "
      "older version, or the file was removed",
      file=sys.stderr,
    )
  found = np.zeros((len(needed), 32), np.uint8)
  for number in range(share.index, len(needed), share.count):
    name = needed[number]
    file = os.path.join(directory, *name.split("/"))
    require(os.path.isfile(file), f"{file}: is missing; prepare the data again")
    digest = digests.of_file(file)
    found[number] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    if manifest is not None:
      require(name in manifest, f"{path}: does not list {name}; prepare the data again")
      require(
        manifest[name]["sha256"] == digest,
        f"{file}: changed or damaged since the data was prepared; prepare the data again",
      )
  of_all = share.gather(found).reshape(share.count, *found.shape).max(0)
  return digests.of_json({name: of_all[i].tobytes().hex() for i, name in enumerate(needed)})


def _read(path: str) -> Mapping[str, Any]:
  files = digests.read_sealed(path).get("files")
  is_manifest = isinstance(files, dict) and all(
    isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in files.values()
  )
  require(is_manifest, f"{path}: not a manifest; prepare the data again")
  return files
