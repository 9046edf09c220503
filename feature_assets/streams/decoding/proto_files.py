"""`.proto` files → descriptors of their messages. What a schema says is read; no code is made of it and none is run."""

# mypy: disable-error-code="import-untyped"

import base64
import binascii
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final, Self

from google.protobuf import any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from feature_assets.errors import hint

_SECONDS: Final = 60
_NAME: Final = re.compile(r"(?!/)(?!.*\.\.)[A-Za-z0-9_./-]{1,200}")
_PROVIDED: Final = {
    module.DESCRIPTOR.name: module
    for module in (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
}


class ProtoFiles:
    """Compiled files. `root` is the name of the one whose messages are counted."""

    def __init__(self, described: FileDescriptorSet, root: str) -> None:
        self._pool = DescriptorPool()
        self._messages = [_full_names(one) for one in described.file]
        for one in described.file:
            try:
                self._pool.Add(one)
            except TypeError as error:
                raise ValueError(f"{one.name} is inconsistent ({error}). Compile it with --include_imports.") from None
        self._root = next((one for one in described.file if one.name == root), None)

    @classmethod
    def from_set(cls, data: bytes) -> Self:
        """Those of a descriptor set.

        Raises:
            ValueError: it is none, or an import is missing.
        """
        try:
            return cls(FileDescriptorSet.FromString(data), "")
        except DecodeError as error:
            raise ValueError(
                f"it is no descriptor set ({error}). Make one with: protoc --include_imports --descriptor_set_out=…"
            ) from None

    def named(self, name: str) -> Descriptor:
        """The message of that full name.

        Raises:
            LookupError: there is none.
        """
        try:
            return self._pool.FindMessageTypeByName(name)
        except KeyError:
            known = [one for names in self._messages for one in names]
            raise LookupError(f"it has no message '{name}'. {hint(name, known, 'messages')}") from None

    def at(self, path: tuple[int, ...]) -> Descriptor:
        """The message by its place in the root file, and within the messages around it.

        Raises:
            LookupError: there is none.
        """
        if self._root is None:
            raise LookupError("no such file")
        first, *inner = path
        found = self._root.message_type[first]
        name = f"{self._root.package}.{found.name}".removeprefix(".")
        for place in inner:
            found = found.nested_type[place]
            name = f"{name}.{found.name}"
        return self.named(name)


def _from_serialized(texts: Mapping[str, str], root: str) -> ProtoFiles:
    """Files as some serializers register them: descriptors in base64, without those that every protoc has."""
    described = {}
    for name, text in texts.items():
        try:
            file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError, DecodeError):
            raise ValueError(f"'{name}' is neither the text of a .proto file nor a descriptor in base64.") from None
        described[name] = file
    described[root].name = root
    found: list[FileDescriptorProto] = []
    _gather(root, described, found, set())
    return ProtoFiles(FileDescriptorSet(file=found), root)


def _gather(
    name: str, described: Mapping[str, FileDescriptorProto], found: list[FileDescriptorProto], seen: set[str]
) -> None:
    """Add a file behind those that it imports."""
    if name in seen:
        return
    seen.add(name)
    if name in described:
        file = described[name]
    elif name in _PROVIDED:
        file = FileDescriptorProto()
        _PROVIDED[name].DESCRIPTOR.CopyToProto(file)
    else:
        raise ValueError(f"it imports '{name}', which is not there.")
    for other in file.dependency:
        _gather(other, described, found, seen)
    found.append(file)


def _full_names(file: object) -> list[str]:
    package, messages = file.package, file.message_type  # type: ignore[attr-defined]
    return [f"{package}.{one.name}".removeprefix(".") for one in messages]


def compiled(texts: Mapping[str, str], root: str) -> ProtoFiles:
    """The files of these names and texts, of which `root` imports the others.

    Raises:
        ValueError: they are not what protoc takes; the message is what it says.
    """
    if "{" not in texts[root]:
        return _from_serialized(texts, root)
    for name in texts:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name[:80]}' is no name of a file. Import by a relative path without '..'.")
    with tempfile.TemporaryDirectory(prefix="proto-") as folder:
        for name, text in texts.items():
            file = Path(folder, "files", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        described = Path(folder, "described")
        command = [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"--proto_path={Path(folder, 'files')}", f"--proto_path={files('grpc_tools') / '_proto'}"),
            *("--include_imports", f"--descriptor_set_out={described}", root),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 (our own command)
        except subprocess.TimeoutExpired:
            raise ValueError(f"protoc did not end within {_SECONDS} seconds. Make the schema simpler.") from None
        if done.returncode:
            raise ValueError(f"protoc says: {'; '.join(done.stderr.strip().splitlines()[-3:])}.")
        return ProtoFiles(FileDescriptorSet.FromString(described.read_bytes()), root)
