"""The few calls that reach a remote, through fsspec, with what goes wrong there in one kind of error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, ConfigurationTypeError, RemoteError, did_you_mean

# Where a file is there while it is being written: it is written under another name and moved.
_FILE_SYSTEMS = {"file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "arrow_hdfs", "dbfs"}
_UPLOADING = ".uploading"


class Objects:
    """The few calls that reach a remote, through fsspec; a key is `folder/file` below the URL, or `file`.

    Each raises FileNotFoundError for what is not there and RemoteError for anything else that goes wrong.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """Raises ConfigurationError for a URL that nothing installed can open; it does not connect."""
        self.url = _without_password(url) if isinstance(url, str) else str(url)
        self._fs, self._root = _open_url(url, storage_options)
        protocols = self._fs.protocol if isinstance(self._fs.protocol, (tuple, list)) else (self._fs.protocol,)
        self._writes_in_place = bool(_FILE_SYSTEMS.intersection(protocols))

    def contents(self, folder: str = "") -> dict[str, int | None]:
        """Name -> size of what is in a folder, or at the top; folders have no size. Empty for a folder that is not."""
        path = f"{self._root}/{folder}" if folder else self._root

        def ask() -> Any:
            self._fs.invalidate_cache()  # other processes write there too
            return self._fs.ls(path, detail=True)

        try:
            found = self._call(ask, folder)
        except FileNotFoundError:
            return {}
        own = path.rstrip("/").rpartition("/")[2]
        names = {str(one["name"]).rstrip("/").rpartition("/")[2]: one for one in found}
        return {
            name: None if one.get("type") == "directory" else one.get("size")
            for name, one in names.items()
            if not (name == own and str(one["name"]).strip("/") == path.strip("/"))  # some list the folder itself
        }

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        return bytes(self._call(lambda: self._fs.cat_file(f"{self._root}/{key}", start=start, end=end), key))

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where the remote does not say."""

        def ask() -> Any:
            self._fs.invalidate_cache()
            return self._fs.info(f"{self._root}/{key}").get("size")

        found = self._call(ask, key)
        return None if found is None else int(found)

    def put(self, key: str, data: bytes) -> None:
        """Make an object of these bytes; a reader sees all of it or what was there before."""
        self._write(key, lambda path: self._fs.pipe_file(path, data))

    def put_file(self, source: Path, key: str) -> None:
        self._write(key, lambda path: self._fs.put_file(str(source), path))

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone already is no error."""
        try:
            self._call(lambda: self._fs.rm_file(f"{self._root}/{key}"), key)
        except FileNotFoundError:
            pass

    def delete_folder(self, folder: str) -> None:
        """Remove an empty folder, where folders are more than parts of keys."""
        if self._writes_in_place:
            self._call(lambda: self._fs.rmdir(f"{self._root}/{folder}"), folder)

    def _write(self, key: str, write: Callable[[str], None]) -> None:
        path = f"{self._root}/{key}"

        def run() -> None:
            if not self._writes_in_place:
                write(path)
                return
            # Always these names, so that crashes leave few files: one for checkpoints, one for each record beside them.
            temporary = f"{self._root}/{_UPLOADING}" + ("" if "/" in key else f"-{key}")
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(temporary)
            self._fs.mv(temporary, path)

        try:
            self._call(run, key)
        except FileNotFoundError as error:  # a bucket that does not exist
            raise RemoteError(f"{self.url}/{key}: {_first_line(error)}") from error

    def _call(self, function: Callable[[], Any], key: str) -> Any:
        try:
            return function()
        except FileNotFoundError:
            raise
        except BaseException as error:  # every client library raises exceptions of its own
            # asyncio's CancelledError is no Exception, and here it is one more failure of the storage.
            if not isinstance(error, Exception) and type(error).__name__ != "CancelledError":
                raise
            raise RemoteError(f"{self.url}{'/' if key else ''}{key}: {_first_line(error)}") from error


def _open_url(url: object, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    if not isinstance(url, str):
        raise ConfigurationTypeError(f"a remote's URL is a str such as 's3://bucket/run', got {url!r}")
    shown = _without_password(url)
    protocol, separator, rest = url.partition("://")
    if not separator or not protocol or not rest.strip("/"):
        raise ConfigurationError(
            "a remote's URL has a protocol and a place, such as 's3://bucket/run' or 'file:///mnt/backup/run', "
            f"got {shown!r}"
        )
    try:
        import fsspec
    except ImportError as error:
        raise ConfigurationError(
            f"{shown} needs fsspec, which is not installed: pip install 'paddlelite_trainer[remote]', "
            "and for s3:// s3fs, for gs:// gcsfs, for oss:// ossfs"
        ) from error
    try:
        file_system, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    except ImportError as error:
        raise ConfigurationError(f"{protocol}:// needs a package that is not installed. {error}") from error
    except Exception as error:  # an unknown protocol, or what a client library thinks of the options
        known = fsspec.available_protocols()
        hint = did_you_mean(protocol, known) if protocol not in known else ""
        raise ConfigurationError(f"{shown} cannot be opened: {_first_line(error)}.{hint}") from error
    return file_system, str(root).rstrip("/")


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url).rstrip("/")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
