"""Copies of prepared data from object storage on this machine."""

import hashlib
import os

from mmoe_jax import cache, digests
from mmoe_jax.data import locations
from mmoe_jax.data.manifest import MANIFEST
from mmoe_jax.errors import require
from mmoe_jax.files import read_json_object


def local_folder(directory: str) -> str:
  """Returns a local folder with the files of prepared data.

  Data in object storage is copied into the cache, once: a file that is there with the digest of
  the manifest is not copied again.

  Args:
    directory: folder of prepared data, local or remote.

  Raises:
    UserError: if there is none, or a copy differs from the manifest.
    OSError: if it cannot be read or written.
  """
  if not locations.is_remote(directory):
    return directory
  source = locations.join(directory, MANIFEST)
  require(locations.exists(source), f"{directory}: contains no prepared data, or not yet")
  name = hashlib.sha256(directory.encode()).hexdigest()[:16]
  target = os.path.join(cache.folder(), "data", name)
  path = os.path.join(target, MANIFEST)
  locations.download(source, path)
  for file, entry in read_json_object(path).get("files", {}).items():
    require(
      not os.path.isabs(file) and ".." not in file.split("/"), f"{source}: names the file {file}"
    )
    copy = os.path.join(target, *file.split("/"))
    is_here = os.path.exists(copy) and os.path.getsize(copy) == entry["bytes"]
    if not is_here or digests.of_file(copy) != entry["sha256"]:
      locations.download(locations.join(directory, file), copy)
  return target
