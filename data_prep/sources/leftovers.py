"""Files and folders in a tree that are not data, such as thumbnails, trash and documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from pathlib import PurePosixPath

_FOLDERS = frozenset(
    [
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "__macosx",
        "__pycache__",
        "lost+found",
        "network trash folder",
        "system volume information",
        "temporary items",
    ]
)
_FILES = frozenset(
    [
        "autorun.inf",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "folder.ini",
        "icon\r",
        "picasa.ini",
        "thumbs.db",
        "thumbs.db:encryptable",
        "zbthumbnail.info",
    ]
)
"""In lower case, as in _FOLDERS."""
_DOCUMENTS = frozenset(
    [
        "attribution",
        "authors",
        "changelog",
        "citation",
        "contributors",
        "copying",
        "copyright",
        "credits",
        "index",
        "licence",
        "license",
        "notice",
        "read me",
        "readme",
    ]
)
_DOCUMENT_TYPES = frozenset(
    ["", ".bib", ".cff", ".htm", ".html", ".md", ".pdf", ".rst", ".rtf", ".txt"]
)
_TABLE_TYPES = frozenset(
    [
        ".cff",
        ".csv",
        ".db",
        ".htm",
        ".html",
        ".ini",
        ".json",
        ".jsonl",
        ".lnk",
        ".log",
        ".md",
        ".md5",
        ".rst",
        ".sha1",
        ".sha256",
        ".tsv",
        ".url",
        ".webloc",
        ".xml",
        ".yaml",
        ".yml",
    ]
)
_SIDECAR_TYPES = frozenset(
    [".aae", ".caption", ".cat", ".dat", ".lab", ".mat", ".npy", ".npz", ".pts", ".txt", ".xmp"]
)
_MOST_NAMED = 5


def is_leftover_folder(name: str) -> bool:
    """Return whether a folder's own name is hidden, or one that systems make for themselves."""
    return name.startswith(".") or name.lower() in _FOLDERS


def is_leftover_file(name: str) -> bool:
    """Return whether a file's own name is hidden, or one that systems give."""
    return name.startswith(".") or name.lower() in _FILES


def find_leftover(path: str) -> str | None:
    """Return the first part of a path that systems left, with a slash if it is a folder."""
    *folders, name = path.split("/")
    for folder in folders:
        if is_leftover_folder(folder):
            return f"{folder}/"
    return name if is_leftover_file(name) else None


def is_document(path: str) -> bool:
    """Return whether a file accompanies images: README, a licence, a table of labels."""
    name = PurePosixPath(path.lower())
    is_named_so = name.stem in _DOCUMENTS and name.suffix in _DOCUMENT_TYPES
    return is_named_so or name.suffix in _TABLE_TYPES


def is_sidecar(path: str, images: Container[str]) -> bool:
    """Return whether a file holds a caption or landmarks of an image beside it.

    images: paths of images, with and without their extensions.
    """
    name = PurePosixPath(path)
    return name.suffix.lower() in _SIDECAR_TYPES and str(name.with_suffix("")) in images


def describe(left_out: Counter[str]) -> list[str]:
    """Return a sentence with the names and counts of omitted files; none without such files."""
    if not left_out:
        return []
    named = [f"{name} ({count:,})" for name, count in left_out.most_common(_MOST_NAMED)]
    rest = sum(left_out.values()) - sum(count for _, count in left_out.most_common(_MOST_NAMED))
    more = f" and {rest:,} others" if rest else ""
    return [f"left out, because they are not data: {', '.join(named)}{more}"]
